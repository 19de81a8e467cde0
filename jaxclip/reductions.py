"""Reductions that write nothing large to memory on the way.

On CPU XLA makes an array of what it reduces by one operation, unless that is a sum of squares, and
none of what it reduces by two at once. But two at once cross devices one by one: of a sharded
array XLA gathers the results of all parts.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Axes = tuple[int, ...]
_ROW = 1024  # entries that one float32 adds up without losing more than 1e-6


def lean_maximum(sizes: Int[Array, "..."], axes: Axes, initial: int = 0) -> Int[Array, "..."]:
    """The maximum of integers that are not negative, for where it is seldom asked for."""

    def with_bits(sizes: Array) -> Array:
        zero = jnp.array(initial, sizes.dtype)
        most, bits = lax.reduce(
            (sizes, sizes), (zero, zero), lambda a, b: (jnp.maximum(a[0], b[0]), a[1] | b[1]), axes
        )
        return most & bits  # has all bits of every one of them

    return lax.platform_dependent(
        sizes, cpu=with_bits, default=lambda sizes: jnp.max(sizes, axes, initial=initial)
    )


def sum_and_number(
    x: Float[Array, "*shape"], marked: Bool[Array, "*shape"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum of all entries, and the number of those that are marked, in one pass.

    Where nothing can be sharded, rows are summed both at once, and then the rows: a sum of all
    entries by one number loses 3 % of 16 million.
    """
    if jax.device_count() > 1 or not isinstance(x.size, int):
        return jnp.sum(x), number(marked)
    head = x.size - x.size % _ROW
    rows = _in_rows(x.ravel()[:head].reshape(-1, _ROW), marked.ravel()[:head].reshape(-1, _ROW))
    rest = _in_rows(x.ravel()[None, head:], marked.ravel()[None, head:])
    total, marks = (a + b for a, b in zip(rows, rest, strict=True))
    return total, marks


def lean_sum(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The sum of all entries, for where it is seldom asked for."""
    total, bad = sum_and_number(x, jnp.isnan(x))
    return jnp.where(bad > 0, jnp.nan, total)


def _in_rows(x: Array, marked: Array) -> tuple[Array, Array]:
    zeros = jnp.zeros((), x.dtype), jnp.zeros((), jnp.int32)
    total, marks = lax.reduce(
        (x, marked.astype(jnp.int32)), zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), (1,)
    )
    return jnp.sum(total), jnp.sum(marks.astype(jnp.float32))


def number(marked: Bool[Array, "..."]) -> Float[Array, ""]:
    """The number of entries that are true, which may exceed an int32."""
    if not isinstance(marked.size, int) or marked.size < 2**31:
        return jnp.sum(marked, dtype=jnp.int32).astype(jnp.float32)
    # An int32 would overflow, and float32 stops counting one by one at 2^24.
    dtype = jnp.int32 if marked.shape[-1] < 2**31 else jnp.float32
    return jnp.sum(jnp.sum(marked, axis=-1, dtype=dtype).astype(jnp.float32))
