"""Clip factors and the `Info` of each example."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..shrinks import Shrink
from .forms import Form

Reduce = Literal["mean", "sum"]
Strategy = Literal["auto", "vmap", "microbatch"]


class Info(NamedTuple):
    """What clipping measured of each example.

    Attributes:
      values: the losses.
      norms: the norms of the gradients before clipping, `[batch]`; a tree of those if the limits
        are one. 0 where the mask leaves an example out.
      clipped: whether the norm was beyond the limit, or the factor below 1, in the same form.
      nonfinite: the number of examples whose gradient holds nan or infinity.
      aux: the auxiliary outputs, with the batch as their first axis, if the loss has any.
    """

    values: Float[Array, " batch"]
    norms: PyTree
    clipped: PyTree
    nonfinite: Int[Array, ""]
    aux: Any = None


class Options(NamedTuple):
    """The keyword arguments of `clipped_grad`."""

    shrink: Shrink
    reduce: Reduce
    has_aux: bool
    nonfinite: Literal["zero", "propagate"]
    strategy: Strategy
    microbatch_size: int | None
    form: Form
    bound: bool
    normalize_by: float = 1.0
    rescale_to_unit_norm: bool = False
    dtype: Any = None


class Decided(NamedTuple):
    """The decision on each example.

    Attributes:
      factors: for each block, `[batch]`.
      clipped: for each block, bool[batch].
      takes_part: which examples are in the sum.
      finite: which have a finite gradient, or are left out by the mask.
    """

    factors: list[Array]
    clipped: list[Array]
    takes_part: Array
    finite: Array


def mask_and_count(
    example_mask: Bool[Array, " batch"] | None, size: int
) -> tuple[Bool[Array, " batch"], Int[Array, ""]]:
    """Which examples count, and how many they are, at least 1."""
    if example_mask is None:
        return jnp.ones(size, jnp.bool_), jnp.int32(size)
    mask = jnp.asarray(example_mask)
    return mask, jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1)


def decide(
    values: Sequence[Array], mask: Array, divisor: Array, limits: Sequence[Array], options: Options
) -> Decided:
    """The factors of a batch, given the norms and the limit of each block."""
    finite = functools.reduce(operator.and_, [jnp.isfinite(n) for n in values], ~mask | True)
    zeroed = options.nonfinite == "zero"
    takes_part = mask & finite if zeroed else mask
    factors, shrunk = [], []
    for norm, limit in zip(values, limits, strict=True):
        limit = jnp.maximum(jnp.asarray(limit, norm.dtype), 0)
        fine = jnp.isfinite(norm)
        factor = options.shrink(jnp.where(fine, norm, 0), jnp.broadcast_to(limit, norm.shape))
        shrunk.append(mask & fine & (factor < 1))
        if options.rescale_to_unit_norm:
            factor = _per_limit(factor, norm, limit)
        factor = factor / (divisor.astype(norm.dtype) * options.normalize_by)
        factor = jnp.where(fine, factor, jnp.nan)
        factors.append(jnp.where(takes_part, factor, 0))
    return Decided(factors, shrunk, takes_part, finite | ~mask)


def _per_limit(factor: Array, norm: Array, limit: Array) -> Array:
    """A factor over the limit; in the limit of 0 every gradient has the norm 1."""
    direction = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
    return jnp.where(limit > 0, factor / jnp.where(limit > 0, limit, 1), direction)


def info_of(values: Array, found: Sequence[Array], decided: Decided, mask: Array, aux: Any) -> Info:
    """The `Info` of a batch; the norms of examples that the mask leaves out are 0."""
    nonfinite = jnp.sum(~decided.finite, dtype=jnp.int32)
    shown = [jnp.where(mask, norm, 0) for norm in found]
    return Info(values, shown, decided.clipped, nonfinite, aux)
