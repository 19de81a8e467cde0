r"""Norms that are right in every dtype, over the whole range of it, and on every sharding.

A norm measures *blocks*. A block is one or more arrays measured together; of each array some axes
may be kept, so that it holds a block for every index along them. In float32 at least,

$$\|x\|_p = \Big(\sum_i |x_i|^p\Big)^{1/p} = m\,\|x / m\|_p, \qquad m = \max_i |x_i|.$$

The first form is one pass and is always computed. Where its sum has left the range in which it can
be trusted, the second form takes its place; it overflows only where the norm does. All blocks of a
tree are measured in one call, so that there is one such choice a tree and not one a leaf.

A block with a nonzero entry has a norm of at least the smallest normal number, so that a norm of 0
means that all entries are 0, also where the arithmetic flushes subnormal numbers.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Inexact, Int

from .bits import magnitude, normal_size

Block = Sequence[Inexact[Array, "..."]]
Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Norm:
    r"""A p-norm.

    Attributes:
      ord: $p$, from 1 to infinity.
      mean: divide the sum by the number of entries, as the root mean square does.
      axis_name: the mapped axes of `shard_map` or `pmap` that a block is spread over.
    """

    ord: float
    mean: bool = False
    axis_name: tuple[str, ...] = ()

    def __call__(self, blocks: Sequence[Block], kept: Sequence[Axes]) -> list[Float[Array, "..."]]:
        """Returns the norms of each block, an array with the axes that it keeps."""
        here = dataclasses.replace(self, axis_name=()) if _one_device.get() else self
        return _differentiable(here, tuple(kept))([list(block) for block in blocks])


l1 = Norm(1)
l2 = Norm(2)
linf = Norm(math.inf)
rms = Norm(2, mean=True)


def lp(ord: float) -> Norm:
    r"""The p-norm $(\sum_i |x_i|^p)^{1/p}$; `inf` is the largest entry.

    Args:
      ord: $p$, a Python number of at least 1.

    Returns:
      The norm, for any measure.

    Raises:
      ValueError: `ord` is below 1, where the triangle inequality, and so clipping, fails.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.whole(jaxclip.norms.lp(3)), 1.0)
    """
    if isinstance(ord, bool) or not isinstance(ord, int | float):
        raise TypeError(
            f"`ord` is {ord!r}, of type {type(ord).__name__}. It decides which code runs, so it "
            "must be a Python number; under `optax.inject_hyperparams` name it in `static_args`."
        )
    if not ord >= 1:
        raise ValueError(f"`ord` is {ord}, but a norm has 1 <= ord <= inf. Use 1, 2 or `math.inf`.")
    return Norm(ord)


def across(norm: Norm, axis_name: str | Sequence[str]) -> Norm:
    r"""The norm of blocks that `shard_map` or `pmap` has spread over devices.

    $$\|x\|_p = \Big(\sum_d \sum_i |x_{d,i}|^p\Big)^{1/p}$$ over the devices $d$ of the named axes.
    Under `shard_map`, which tracks what varies over which axis, an array that is replicated along
    one is counted once. Under `pmap`, and under `shard_map(check_vma=False)`, nothing tracks it,
    and every array is taken to be a shard.

    Args:
      norm: the norm of one device's share.
      axis_name: one or more mapped axes.

    Returns:
      The norm over all devices, equal on all of them. Outside such a map it raises `NameError`.

    Examples:
      >>> import jaxclip
      >>> from jaxclip import measures, norms
      >>> tx = jaxclip.clip(measures.whole(norms.across(norms.l2, "data")), 1.0)
    """
    return dataclasses.replace(
        norm, axis_name=(axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    )


_one_device = contextvars.ContextVar("_one_device", default=False)


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Takes one device's share for all, for callers that need only the shapes of norms."""
    token = _one_device.set(True)
    try:
        yield
    finally:
        _one_device.reset(token)


def working_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to compute in: float32 (or complex64) for all that is narrower."""
    wide = jnp.finfo(dtype).bits >= 32
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.dtype(dtype)
    return jnp.dtype(dtype) if wide else jnp.dtype(jnp.float32)


def expand(block_values: Array, kept: Axes, ndim: int) -> Array:
    """Gives an array with one value a block the rank of the array that holds the blocks."""
    return jnp.expand_dims(block_values, _reduced(kept, ndim))


@functools.cache
def _differentiable(norm: Norm, kept: tuple[Axes, ...]) -> Callable:
    """One function for all calls of one form, so that those outside of `jit` compile it once."""

    # The derivative is written down because the derivative of the square root at 0 is infinite,
    # where that of the clip is 1; and since `custom_vmap` below has no reverse mode.
    @jax.custom_jvp
    def norms(blocks):
        if norm.ord == math.inf:
            return [_largest(norm, block, k) for block, k in zip(blocks, kept, strict=True)]
        return _rescued(
            lambda blocks: [_total(norm, b, k) for b, k in zip(blocks, kept, strict=True)],
            lambda total: _root(norm.ord, total),
            lambda blocks: [_scaled(norm, b, k) for b, k in zip(blocks, kept, strict=True)],
        )(blocks)

    @norms.defjvp
    def norms_jvp(primals, tangents):
        (blocks,), (blocks_dot,) = primals, tangents
        values = norms(blocks)
        return values, [
            _derivative(norm, k, value, block, block_dot)
            for k, value, block, block_dot in zip(kept, values, blocks, blocks_dot, strict=True)
        ]

    return jax.jit(norms)


def _rescued(plain: Callable, root: Callable, scaled: Callable) -> Callable:
    """Chooses between the plain norms and the scaled ones, at run time, once for all blocks.

    A branch costs nothing where it is not taken, and 3 times less than computing both forms. Under
    `vmap` a branch becomes a selection, which would always run both; hence the rule of its own,
    which takes the branch when any member of the batch needs it.
    """

    @custom_vmap
    def norms(blocks):
        totals = plain(blocks)
        extreme = [~_trusted(total) for total in totals]
        if not extreme:
            return []

        def rescue():
            return [
                jnp.where(e, s, root(t))
                for e, s, t in zip(extreme, scaled(blocks), totals, strict=True)
            ]

        any_extreme = functools.reduce(operator.or_, [jnp.any(e) for e in extreme])
        return lax.cond(any_extreme, rescue, lambda: [root(total) for total in totals])

    @norms.def_vmap
    def batched(axis_size, in_batched, blocks):
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, in_batched[0])
        over_batch = functools.partial(jax.vmap, in_axes=(axes,), axis_size=axis_size)
        values = _rescued(over_batch(plain), root, over_batch(scaled))(blocks)
        return values, [True for _ in values]

    return norms


def _trusted(total: Array) -> Array:
    # Entries whose power underflows are lost from the sum, 1.2e-38 each at most in float32: against
    # a sum of 1.1e-19 that takes 10^12 of them to be seen. Zero and nan are not trusted either.
    low = jnp.sqrt(jnp.finfo(total.dtype).tiny)
    return (total >= low) & (total <= 1 / low)


def _total(norm: Norm, block: Block, kept: Axes) -> Array:
    """Sums the p-th powers of a block's entries."""
    total = _sum(norm, block, kept, lambda x: _power(x, norm.ord))
    return total / _count(norm, block, kept, total.dtype) if norm.mean else total


def _scaled(norm: Norm, block: Block, kept: Axes) -> Array:
    r"""$m\,\|x / m\|_p$ with the largest entry $m$."""
    block = block if kept else _stacked(block)
    largest = _largest(norm, block, kept, _lean_maximum)
    usable = (largest > 0) & jnp.isfinite(largest)
    root = jnp.sqrt(jnp.where(usable, largest, 1))  # m = root * root
    # One root for every array: XLA would write a broadcast that several share to memory.
    roots = lax.optimization_barrier([root] * len(block))
    ratios = [
        ratio(_read(lax.optimization_barrier(x)), expand(r, kept, x.ndim))
        for x, r in zip(block, roots, strict=True)
    ]
    value = _root(norm.ord, _total(norm, ratios, kept)) * root * root
    # Subnormal entries are flushed from the sum, but what is not zero has no norm of zero.
    return jnp.where(usable, jnp.maximum(value, jnp.finfo(value.dtype).tiny), largest)


def _stacked(block: Block) -> list[Array]:
    """The arrays of a block, with small ones that are alike in one.

    What is done with them is compiled once and not for every one of them.
    """
    alike: dict[Any, list[Array]] = {}
    for position, x in enumerate(block):
        small = isinstance(x.size, int) and x.size <= 1024
        alike.setdefault(jax.typeof(x) if small else position, []).append(x)
    return [jnp.stack(arrays) if arrays[1:] else arrays[0] for arrays in alike.values()]


def ratio(x: Array, root: Array) -> Array:
    r"""$x / n$, given $\sqrt n$, which has an inverse in range for every normal $n$.

    XLA turns a division by a broadcast number $n$ into a product with $1/n$, which is flushed to 0
    for the largest $n$. A power of two near $1/n$ would do as well, but what is cheap to compute,
    and all that it is made of, XLA computes anew beside every array that it is multiplied with.
    """
    inverse = (1 / root).astype(x.dtype)
    return x * inverse * inverse


def _derivative(norm: Norm, kept: Axes, value: Array, block: Block, block_dot: Block) -> Array:
    r"""$\dot n = \sum_i (|x_i|/n)^{p-1} \mathrm{sgn}(x_i)\,\dot x_i$, and 0 where $n = 0$."""
    root = jnp.sqrt(jnp.where(value > 0, value, 1))

    def direction(x: Array) -> Array:
        if norm.ord == math.inf:
            largest = expand(value, kept, x.ndim).astype(jnp.finfo(x.dtype).dtype)
            return jnp.sign(x) * (jnp.abs(x) == largest).astype(x.dtype)
        r = expand(root, kept, x.ndim)
        if norm.ord == 2:
            return ratio(x, r)
        return jnp.sign(x) * (ratio(jnp.abs(x), r) ** (norm.ord - 1)).astype(x.dtype)

    block, block_dot = [_wide(x) for x in block], [_wide(x) for x in block_dot]
    directions = [direction(x) for x in block]
    products = [(d.conj() * dx).real for d, dx in zip(directions, block_dot, strict=True)]
    total = _sum(norm, products, kept, lambda product: product)
    if norm.ord == math.inf:  # entries that tie for the largest share the derivative
        total = total / jnp.maximum(_sum(norm, directions, kept, jnp.abs), 1)
    return total / _count(norm, block, kept, total.dtype) if norm.mean else total


def _sum(norm: Norm, block: Block, kept: Axes, of: Callable) -> Float[Array, "..."]:
    """Sums `of(entry)` over a block's entries, arrays and devices."""
    return _combined(
        norm,
        block,
        lambda x: jnp.sum(of(_read(x)), _reduced(kept, x.ndim)),
        operator.add,
        lax.psum,
    )


def _largest(
    norm: Norm, block: Block, kept: Axes, maximum: Callable = jnp.max
) -> Float[Array, "..."]:
    """The largest size of a block's entries; nan where one of them is.

    Sizes are compared as integers, which have the same order: a maximum of integers neither flushes
    a subnormal number nor, reduced over devices, drops nan.
    """
    by_dtype: dict[jnp.dtype, list[Array]] = {}
    for x in block:
        by_dtype.setdefault(working_dtype(x.dtype), []).append(x)
    widest = _widest([jnp.zeros((), dtype) for dtype in by_dtype])
    sizes = [
        normal_size(
            _combined(
                norm,
                arrays,
                lambda x: maximum(magnitude(_read(x)), _reduced(kept, x.ndim), initial=0),
                jnp.maximum,
                lax.pmax,
            )
        ).astype(widest)
        for arrays in by_dtype.values()
    ]
    return functools.reduce(jnp.maximum, sizes) if sizes else jnp.zeros((), widest)


def _lean_maximum(sizes: Int[Array, "..."], axes: Axes, initial: int) -> Int[Array, "..."]:
    """The maximum, with nothing written to memory on the way.

    On CPU XLA makes an array of what it reduces by one operation, and none of what it reduces by
    two at once; of a sharded array it gathers the numbers of all parts.
    """

    def with_bits(sizes: Array) -> Array:
        zero = jnp.array(initial, sizes.dtype)
        most, bits = lax.reduce(
            (sizes, sizes), (zero, zero), lambda a, b: (jnp.maximum(a[0], b[0]), a[1] | b[1]), axes
        )
        return most & bits  # has all bits of every one of them

    return lax.platform_dependent(
        sizes, cpu=with_bits, default=lambda sizes: jnp.max(sizes, axes, initial=initial)
    )


def _read(x: Array) -> Array:
    """The array to compute with, read for that alone.

    Without the barrier XLA keeps what is computed of it here for the next who reads it, such as
    for the scaling by the norm: a float32 copy of every bfloat16 array.
    """
    return _wide(lax.optimization_barrier(x))


def _wide(x: Array) -> Array:
    return x.astype(working_dtype(x.dtype))


def _combined(
    norm: Norm, block: Block, part: Callable, combine: Callable, collective: Callable
) -> Array:
    """Combines one part of every array of a block, and those of all devices."""
    shards: dict[tuple[str, ...], list[Array]] = {}
    for x in block:
        shards.setdefault(_spread_over(x, norm.axis_name), []).append(part(x))
    if not shards:
        return jnp.zeros((), jnp.float32)
    widest = _widest([p for parts in shards.values() for p in parts])
    # All of one device is combined before anything crosses devices: one scalar collective a block.
    totals = [
        collective(total, axes) if axes else total
        for axes, parts in shards.items()
        for total in [functools.reduce(combine, [part.astype(widest) for part in parts])]
    ]
    return functools.reduce(combine, totals)


def _widest(arrays: Sequence[Array]) -> jnp.dtype:
    """The widest of the arrays' dtypes, that of the sizes where they are complex."""
    reals = [
        jnp.finfo(x.dtype).dtype if jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype
        for x in arrays
    ]
    return max(reals, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def _count(norm: Norm, block: Block, kept: Axes, dtype: jnp.dtype) -> Any:
    """The number of entries of a block over all devices, at least 1."""

    def size(x: Array) -> Any:
        share = math.prod(x.shape[axis] for axis in _reduced(kept, x.ndim))
        return share * math.prod(lax.axis_size(name) for name in _spread_over(x, norm.axis_name))

    return jnp.maximum(count(sum(size(x) for x in block), dtype), 1)


def count(number: Any, dtype: jnp.dtype) -> Array:
    """A number of entries as an array: it may exceed every integer of JAX, or be symbolic."""
    return jnp.asarray(float(number) if isinstance(number, int) else number).astype(dtype)


def _spread_over(x: Array, axis_name: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the named axes along which `x` differs from device to device."""

    def tracked(name: str) -> bool:
        return name in jax.typeof(lax.axis_index(name)).manual_axis_type.varying

    return tuple(
        n for n in axis_name if not tracked(n) or n in jax.typeof(x).manual_axis_type.varying
    )


def _power(x: Array, ord: float) -> Array:
    if ord == 2:
        return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x
    return jnp.abs(x) if ord == 1 else jnp.abs(x) ** ord


def _root(ord: float, total: Array) -> Array:
    if ord == 1:
        return total
    return jnp.sqrt(total) if ord == 2 else total ** (1 / ord)


def _reduced(kept: Axes, ndim: int) -> Axes:
    return tuple(axis for axis in range(ndim) if axis not in kept)
