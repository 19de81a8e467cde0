"""A function of one example over a batch, some examples at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def over_batch(one: Callable, axes: Any, arrays: Any, size: int, chunk: int) -> Any:
    """`jax.vmap` of a function, `chunk` examples at a time.

    Args:
      one: a function of a tree of arrays.
      axes: the tree of their batch axes.
      arrays: the tree of the arrays of the batch.
      size: how many examples there are.
      chunk: a divisor of that.

    Returns:
      The results of all, with the batch as their first axis.
    """
    whole = jax.vmap(one, in_axes=(axes,))
    if chunk >= size:
        return whole(arrays)
    count = size // chunk

    def part(i: Array) -> Any:
        # Every `count`-th example, so that each device has its share of a chunk.
        def some(axis: int, x: Array) -> Array:
            split = lax.reshape(x, (*x.shape[:axis], chunk, count, *x.shape[axis + 1 :]))
            return lax.dynamic_index_in_dim(split, i, axis + 1, keepdims=False)

        return whole(jax.tree.map(some, axes, arrays))

    def joined(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape(size, *x.shape[2:])

    return jax.tree.map(joined, lax.map(part, jnp.arange(count, dtype=jnp.int32)))
