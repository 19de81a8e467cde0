"""Sums of products of factors, in float32 at least."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..norms import working_dtype


class Ids(NamedTuple):
    """One-hot vectors, one a position: the index of the one, -1 for a vector of zeros."""

    positions: Array


def gram(left: Array | Ids, right: Array | Ids) -> Array:
    """The inner products `[g, t, s]` of the vectors of two factors, in float32 at least."""
    if isinstance(left, Ids) and isinstance(right, Ids):
        same = (left.positions[:, None] == right.positions[None, :]) & (left.positions >= 0)[
            :, None
        ]
        return same.astype(jnp.float32)[None]
    if isinstance(left, Ids):
        return jnp.swapaxes(gram(right, left), 1, 2)
    if isinstance(right, Ids):
        chosen = left[:, :, jnp.maximum(right.positions, 0)]
        return jnp.where((right.positions >= 0)[None, None], chosen, 0).astype(
            accumulator(left.dtype)
        )
    return contract(left, right, 2)


def total(x: Array) -> Array:
    """The sum of all entries."""
    return lax.reduce_sum(x, tuple(range(x.ndim)))


def wide(x: Array) -> Array:
    """An array in the dtype to sum it in."""
    return lax.convert_element_type(x, accumulator(x.dtype))


def accumulator(*dtypes: Any) -> Any:
    """The dtype to sum in, float32 at least."""
    return max((working_dtype(jnp.dtype(dtype)) for dtype in dtypes), key=lambda d: d.itemsize)


def contract(left: Array, right: Array, axis: int) -> Array:
    """Sums products over one axis of `[group, position, feature]`, group by group."""
    dtype = accumulator(left.dtype, right.dtype)
    dimensions = (((axis,), (axis,)), ((0,), (0,)))
    return lax.dot_general(left, right, dimensions, preferred_element_type=dtype)


def arranged(
    x: Array,
    loops: int,
    groups: Sequence[int],
    positions: Sequence[int],
    features: Sequence[int],
) -> Array:
    """Brings `[*loops, *shape]` into the form `[group, position, feature]`."""
    sides = [
        [loops + d for d in groups],
        [*range(loops), *(loops + d for d in positions)],
        [loops + d for d in features],
    ]
    sizes = [math.prod(x.shape[d] for d in side) for side in sides]
    return lax.reshape(lax.transpose(x, [d for side in sides for d in side]), sizes)


def is_dense(x: Array) -> bool:
    """Whether an array holds numbers, and not indices."""
    return jnp.issubdtype(x.dtype, jnp.inexact)
