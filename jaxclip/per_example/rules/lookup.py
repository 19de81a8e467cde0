"""Lookups by `gather` and `dynamic_slice`: products with one-hot vectors, kept as indices."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..equations import cut_axis
from ..products import Ids, arranged
from ..program import Site
from .base import Factors, Layout, Rule, rest


def activation_of_gather(eqn: Any, weight: int, examples: Sequence[int]) -> int | None:
    """The indices, if they choose among the first dimension and take all of the others."""
    numbers, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    is_lookup = (
        tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and not numbers.operand_batching_dims
        and tuple(eqn.params["slice_sizes"]) == (1, *shape[1:])
    )
    return 1 if is_lookup and weight == 0 and list(examples) == [1] else None


def layout_of_gather(site: Site) -> Layout:
    """The entries of the table on the left."""
    return Layout((), (0,), rest(site.kernel.ndim, (0,)))


def factors_of_gather(site: Site, act: Array, out_grad: Array) -> Factors:
    """The indices, and the gradient of the output."""
    numbers, index = site.eqn.params["dimension_numbers"], act[..., 0].astype(jnp.int32)
    size, loops = site.kernel.shape[0], out_grad.ndim - site.output.ndim
    drops = site.eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    inside = (index >= 0) & (index < size)
    index = jnp.where(inside, index, -1) if drops else jnp.clip(index, 0, size - 1)
    positions = rest(site.output.ndim, numbers.offset_dims)
    v = arranged(out_grad, loops, (), positions, numbers.offset_dims)
    return Factors(Ids(index.reshape(v.shape[1]), size), v)


def activation_of_slice(eqn: Any, weight: int, examples: Sequence[int]) -> int | None:
    """The start of a slice, if it cuts out one index of one dimension."""
    if weight != 0 or len(examples) != 1:
        return None
    return examples[0] if cut_axis(eqn) == examples[0] - 1 else None


def layout_of_slice(site: Site) -> Layout:
    """The dimension that is cut on the left."""
    axis = site.act_position - 1
    return Layout((), (axis,), rest(site.kernel.ndim, (axis,)))


def factors_of_slice(site: Site, act: Array, out_grad: Array) -> Factors:
    """The start, and the gradient of the output."""
    axis, loops = site.act_position - 1, out_grad.ndim - site.output.ndim
    v = arranged(out_grad, loops, (), (axis,), rest(site.output.ndim, (axis,)))
    size = site.kernel.shape[axis]
    start = jnp.clip(act, 0, size - 1).astype(jnp.int32)
    return Factors(Ids(start.reshape(v.shape[1]), size), v)


GATHER = Rule(activation_of_gather, factors_of_gather, layout_of_gather)
SLICE = Rule(activation_of_slice, factors_of_slice, layout_of_slice)
