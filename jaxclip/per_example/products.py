"""Factors of outer products, and sums of products of them, in float32 at least."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..norms import working_dtype

EXACT = lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ids:
    """One-hot vectors, one a position: the index of the one, -1 for a vector of zeros.

    Attributes:
      positions: the indices, int[t].
      size: how long the vectors are.
    """

    positions: Array
    size: int = dataclasses.field(metadata={"static": True})


class Patches(NamedTuple):
    """Vectors of which each offset in a kernel has a part: `at(offset)` is `[g, t, d]`."""

    at: Callable[[Array], Array]
    offsets: Array
    features: int


Factor = Array | Ids | Patches


def gram(left: Factor, right: Factor) -> Array:
    """The inner products `[g, t, s]` of the vectors of two factors, in float32 at least."""
    if isinstance(left, Ids) and isinstance(right, Ids):
        same = (left.positions[:, None] == right.positions[None, :]) & (left.positions >= 0)[
            :, None
        ]
        return same.astype(jnp.float32)[None]
    if isinstance(left, Ids):
        return jnp.swapaxes(gram(right, left), 1, 2)
    if isinstance(right, Ids):
        assert not isinstance(left, Patches)  # a kernel is not looked up
        chosen = left[:, :, jnp.maximum(right.positions, 0)]
        return jnp.where((right.positions >= 0)[None, None], chosen, 0).astype(
            accumulator(left.dtype)
        )
    if isinstance(left, Patches):
        assert isinstance(right, Patches)

        def product(offset: Array) -> Array:
            return contract(left.at(offset), right.at(offset), 2, EXACT)

        def add(total: Array, offset: Array) -> tuple[Array, None]:
            return total + product(offset), None

        return lax.scan(add, product(left.offsets[0]), left.offsets[1:])[0]
    assert not isinstance(right, Patches)
    return contract(left, right, 2, EXACT)


def features(factor: Factor) -> int:
    """How many products are summed for an inner product of two vectors; 0 where it is exact."""
    if isinstance(factor, Ids):
        return 0
    return factor.features if isinstance(factor, Patches) else factor.shape[2]


def total(x: Array) -> Array:
    """The sum of all entries."""
    return lax.reduce_sum(x, tuple(range(x.ndim)))


def wide(x: Array) -> Array:
    """An array in the dtype to sum it in."""
    return lax.convert_element_type(x, accumulator(x.dtype))


def accumulator(*dtypes: Any) -> Any:
    """The dtype to sum in, float32 at least."""
    return max((working_dtype(jnp.dtype(dtype)) for dtype in dtypes), key=lambda d: d.itemsize)


def contract(left: Array, right: Array, axis: int, precision: Any = None) -> Array:
    """Sums products over one axis of `[group, position, feature]`, group by group."""
    dtype = accumulator(left.dtype, right.dtype)
    if left.dtype != right.dtype:
        left, right = (lax.convert_element_type(x, dtype) for x in (left, right))
    dimensions = (((axis,), (axis,)), ((0,), (0,)))
    return lax.dot_general(left, right, dimensions, precision, preferred_element_type=dtype)


def outer(u: Factor, v: Factor, precision: Any = None) -> Array:
    """The sum over the positions of the outer products, `[g, d, p]`."""
    assert not isinstance(u, Patches) and not isinstance(v, Patches)
    if isinstance(v, Ids):
        return jnp.swapaxes(outer(v, u, precision), 1, 2)
    if not isinstance(u, Ids):
        return contract(u, v, 1, precision)
    zeros = jnp.zeros((u.size, v.shape[-1]), accumulator(v.dtype))
    index = jnp.where(u.positions >= 0, u.positions, u.size)
    return zeros.at[index].add(wide(v[0]), mode="drop")[None]


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
