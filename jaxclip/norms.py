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

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Inexact

from .bits import magnitude, normal_size
from .devices import Across, Names, along, devices, over_devices
from .devices import across as across_devices
from .reductions import lean_maximum

Block = Sequence[Inexact[Array, "..."]]
Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Norm:
    r"""A p-norm.

    Attributes:
      ord: $p$, from 1 to infinity.
      mean: divide the sum by the number of entries, as the root mean square does.
      axis_name: the mapped axes that it is across, where a clip is given none; `across` sets it.
      by_array: return pairs, of the norm of a block, which keeps no axis, and a vector of those of
        its arrays alone. They cost no further pass; one that is a billion times smaller than the
        block's may be 0.
    """

    ord: float
    mean: bool = False
    axis_name: Names | None = None
    by_array: bool = False

    def __call__(
        self, blocks: Sequence[Block], kept: Sequence[Axes], over: Sequence[Across] = ()
    ) -> list[Any]:
        """Returns the norms of each block, an array with the axes that it keeps.

        Args:
          blocks: the arrays of each block.
          kept: the axes that each block keeps.
          over: what each block is measured across; by default the mapped axes of the norm.
        """
        blocks = [list(block) for block in blocks]
        over = over or across_devices(
            [[along(self.axis_name or (), x) for x in block] for block in blocks]
        )
        # What crosses the same devices takes the same branch on all of them: a collective in a
        # branch that other devices do not take would wait for ever.
        alike: dict[Names, list[int]] = {}
        for k, (axes, _) in enumerate(over):
            alike.setdefault(axes, []).append(k)
        found = {}
        for axes, members in alike.items():
            form = Form(
                axes, tuple(kept[k] for k in members), tuple(over[k].copies for k in members)
            )
            values = _differentiable(self, form)([blocks[k] for k in members])
            found |= dict(zip(members, values, strict=True))
        values = [found[k] for k in range(len(blocks))]
        return [tuple(value) for value in values] if self.by_array else values


class ByArray(NamedTuple):
    """Something of a block, and a vector of the same of its arrays alone."""

    block: Array
    arrays: Float[Array, " arrays"]


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
    It is for measures of your choice what `axis_name=` is for a clip, which goes before it. Under
    `shard_map`, which tracks what varies over which axis, an array that is replicated along one is
    counted once. Under `pmap`, and under `shard_map(check_vma=False)`, nothing tracks it, and every
    array is taken for a shard.

    Args:
      norm: the norm of one device's share.
      axis_name: one or more mapped axes.

    Returns:
      The norm over all devices, equal on all of them. Outside of such a map it raises `NameError`.

    Raises:
      TypeError: `axis_name` is no name and no names.

    Examples:
      >>> import jaxclip
      >>> from jaxclip import measures, norms
      >>> tx = jaxclip.clip(measures.whole(norms.across(norms.linf, "data")), 1.0)
    """
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"`axis_name` is {axis_name!r}, but a norm is across mapped axes by name. Give a name "
            "or names here, and a `PartitionSpec` or a tree to the clip, as `axis_name=`."
        )
    return dataclasses.replace(norm, axis_name=names)


def working_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to compute in: float32 (or complex64) for all that is narrower."""
    wide = jnp.finfo(dtype).bits >= 32
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.dtype(dtype)
    return jnp.dtype(dtype) if wide else jnp.dtype(jnp.float32)


def expand(block_values: Array, kept: Axes, ndim: int) -> Array:
    """Gives an array with one value a block the rank of the array that holds the blocks."""
    return jnp.expand_dims(block_values, _reduced(kept, ndim))


class Form(NamedTuple):
    """All of some blocks but the entries.

    Attributes:
      axes: the mapped axes that they are measured across.
      kept: the axes that each block keeps.
      copies: of each array of each block, how many devices along `axes` hold the same entries.
    """

    axes: Names
    kept: tuple[Axes, ...]
    copies: tuple[tuple[int, ...], ...]


@functools.cache
def _differentiable(norm: Norm, form: Form) -> Callable:
    """One function for all calls of one form, so that those outside of `jit` compile it once."""

    # The derivative is written down because the derivative of the square root at 0 is infinite,
    # where that of the clip is 1; and since `custom_vmap` below has no reverse mode.
    @jax.custom_jvp
    def norms(blocks):
        if norm.ord == math.inf:
            return _largest_by_array(form, blocks) if norm.by_array else _largest(form, blocks)
        values, _ = rescued(
            lambda blocks: (_totals(norm, form, blocks), ()),
            lambda total: jax.tree.map(functools.partial(_root, norm.ord), total),
            lambda blocks: (_scaled_by_array if norm.by_array else _scaled)(norm, form, blocks),
            batches=not form.axes,
        )(blocks)
        return values

    @norms.defjvp
    def norms_jvp(primals, tangents):
        (blocks,), (blocks_dot,) = primals, tangents
        values: list[Any] = norms(blocks)
        if not norm.by_array:
            return values, _derivatives(norm, form, values, blocks, blocks_dot)
        whole, pair = [value.block for value in values], (blocks, blocks_dot)
        alone = [number for value in values for number in value.arrays]
        return values, _paired(
            _derivatives(norm, form, whole, blocks, blocks_dot),
            _derivatives(norm, _alone(form, blocks)[0], alone, *map(_singles, pair)),
            blocks,
        )

    return jax.jit(norms)


def rescued(plain: Callable, root: Callable, scaled: Callable, batches: bool) -> Callable:
    """Chooses between the plain norms and the scaled ones, at run time, once for all blocks.

    `plain` returns the totals of the blocks, of which `root` makes norms, and what else its pass
    has found; `scaled` returns norms. The choice returns norms, and what else was found.

    A branch costs nothing where it is not taken, and 3 times less than computing both forms. Under
    `vmap` a branch becomes a selection, which would always run both; hence the rule of its own,
    which takes the branch when any member of the batch needs it. It does not know of `vmap` with an
    `axis_name`, which collectives may be about; so there are no `batches` with those.
    """

    def norms(blocks):
        totals, rest = plain(blocks)
        extreme = [~_trusted(jax.tree.leaves(total)[0]) for total in totals]
        if not extreme:
            return [], rest

        def rescue():
            def choose(e, s, t):
                # Of a batch, the arrays of a block have an axis more than the block.
                return jnp.where(jnp.expand_dims(e, tuple(range(e.ndim, s.ndim))), s, t)

            return [
                jax.tree.map(functools.partial(choose, e), s, root(t))
                for e, s, t in zip(extreme, scaled(blocks), totals, strict=True)
            ]

        any_extreme = functools.reduce(operator.or_, [jnp.any(e) for e in extreme])
        return lax.cond(any_extreme, rescue, lambda: [root(total) for total in totals]), rest

    def batched(axis_size, in_batched, blocks):
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, in_batched[0])
        over_batch = functools.partial(jax.vmap, in_axes=(axes,), axis_size=axis_size)
        found = rescued(over_batch(plain), root, over_batch(scaled), True)(blocks)
        return found, jax.tree.map(lambda _: True, found)

    if not batches:
        return norms
    with_rule = custom_vmap(norms)
    with_rule.def_vmap(batched)
    return with_rule


def _trusted(total: Array) -> Array:
    # Entries whose power underflows are lost from the sum, 1.2e-38 each at most in float32: against
    # a sum of 1.1e-19 that takes 10^12 of them to be seen. Zero and nan are not trusted either.
    low = jnp.sqrt(jnp.finfo(total.dtype).tiny)
    return (total >= low) & (total <= 1 / low)


def _totals(norm: Norm, form: Form, blocks: Sequence[Block]) -> list[Any]:
    """Sums the p-th powers of each block's entries."""
    if norm.by_array:
        alone = _sums(*_alone(form, blocks), lambda x: _power(x, norm.ord))
        return _paired_totals(norm, form, blocks, alone)
    totals = _sums(form, blocks, lambda x: _power(x, norm.ord))
    return _means(form, blocks, totals) if norm.mean else totals


def _paired_totals(
    norm: Norm, form: Form, blocks: Sequence[Block], alone: Sequence[Array]
) -> list[ByArray]:
    """The totals of blocks, given those of their arrays alone, in turn."""
    rest = iter(alone)
    whole = [_folded(operator.add, [next(rest) for _ in block]) for block in blocks]
    if norm.mean:
        whole, alone = _means(form, blocks, whole), _means(*_alone(form, blocks), alone)
    return _paired(whole, alone, blocks)


def _paired(
    whole: Sequence[Array], alone: Sequence[Array], blocks: Sequence[Block]
) -> list[ByArray]:
    """Something of each block, and of their arrays in turn."""
    rest = iter(alone)
    return [
        ByArray(value, jnp.stack(arrays) if arrays else jnp.zeros(0, value.dtype))
        for value, block in zip(whole, blocks, strict=True)
        for arrays in [[next(rest).astype(value.dtype) for _ in block]]
    ]


def _alone(form: Form, blocks: Sequence[Block]) -> tuple[Form, list[Block]]:
    """Every array of the blocks as a block."""
    copies = tuple((n,) for of_block in form.copies for n in of_block)
    return Form(form.axes, ((),) * len(copies), copies), _singles(blocks)


def _singles(blocks: Sequence[Block]) -> list[Block]:
    return [[x] for block in blocks for x in block]


def _scaled(norm: Norm, form: Form, blocks: Sequence[Block]) -> list[Array]:
    r"""$m\,\|x / m\|_p$ with the largest entry $m$, of each block."""
    form, blocks = _stacked(form, blocks)

    def scaled(roots: list[Array]) -> list[Array]:
        divided = [_ratios(*one) for one in zip(blocks, form.kept, roots, strict=True)]
        return [_root(norm.ord, total) for total in _totals(norm, form, divided)]

    return by_largest(_largest(form, blocks, lean_maximum), scaled)


def by_largest(
    largest: Sequence[Array], scaled: Callable[[list[Array]], list[Array]]
) -> list[Array]:
    r"""$m\,\|x / m\|$ of the largest entries and the norms of $x / r^2$, where $m = r^2$."""
    roots = [_usable_root(m) for m in largest]
    values = [value * r * r for value, r in zip(scaled(roots), roots, strict=True)]
    return [_in_range(*one) for one in zip(values, largest, strict=True)]


def _scaled_by_array(norm: Norm, form: Form, blocks: Sequence[Block]) -> list[ByArray]:
    """The same, and of the arrays alone, all scaled by the largest entry of their block."""
    alike = [_alike(*one) for one in zip(blocks, form.kept, form.copies, strict=True)]
    of = [(block, places) for block, groups in zip(blocks, alike, strict=True) for places in groups]
    counts = [n for n, groups in zip(form.copies, alike, strict=True) for _ in groups]
    stacks = [_stack(block, places) for block, places in of]
    of_stacks = Form(
        form.axes,
        tuple((0,) if places[1:] else () for _, places in of),
        tuple((n[places[0]],) for n, (_, places) in zip(counts, of, strict=True)),
    )

    def in_turn(parts: Sequence[Array]) -> list[Array]:
        """Vectors of what the arrays of each block have, given what the stacks have."""
        rest = iter(parts)
        return [_in_turn([next(rest) for _ in groups], groups) for groups in alike]

    largest = in_turn(_largest(of_stacks, [[x] for x in stacks], lean_maximum))
    # Beside an array that is not finite, others have norms of their own.
    finite = [jnp.max(jnp.where(jnp.isfinite(m), m, 0), initial=0) for m in largest]
    roots = [_usable_root(m) for m in finite]
    rest = iter(stacks)
    ratios = [
        [r]
        for groups, root in zip(alike, roots, strict=True)
        for r in _ratios([next(rest) for _ in groups], (), root)
    ]
    alone = in_turn(_sums(of_stacks, ratios, lambda x: _power(x, norm.ord)))
    totals = _paired_totals(norm, form, blocks, [one for vector in alone for one in vector])

    def unscaled(total: Array, root: Array, most: Array) -> Array:
        return _in_range(_root(norm.ord, total) * root * root, most)

    return [
        ByArray(unscaled(t.block, root, jnp.max(m, initial=0)), unscaled(t.arrays, root, m))
        for t, root, m in zip(totals, roots, largest, strict=True)
    ]


def _usable_root(largest: Array) -> Array:
    r"""$\sqrt m$, or 1 where $m$ is of no use."""
    return jnp.sqrt(jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1))


def _ratios(block: Block, kept: Axes, root: Array) -> Block:  # m = root * root
    # One root for every array: XLA would write a broadcast that several share to memory.
    own = lax.optimization_barrier([root] * len(block))
    return [
        ratio(_read(lax.optimization_barrier(x)), expand(r, kept, x.ndim))
        for x, r in zip(block, own, strict=True)
    ]


def _in_range(value: Array, largest: Array) -> Array:
    """A norm, given the largest entry: zero, infinite or nan where that is."""
    usable = (largest > 0) & jnp.isfinite(largest)
    # Subnormal entries are flushed from the sum, but what is not zero has no norm of zero.
    return jnp.where(usable, jnp.maximum(value, jnp.finfo(value.dtype).tiny), largest)


def _stacked(form: Form, blocks: Sequence[Block]) -> tuple[Form, list[Block]]:
    """Blocks with small arrays that are alike in one."""
    alike = [_alike(*one) for one in zip(blocks, form.kept, form.copies, strict=True)]
    copies = [
        tuple(n[places[0]] for places in groups)
        for n, groups in zip(form.copies, alike, strict=True)
    ]
    return form._replace(copies=tuple(copies)), [
        [_stack(block, places) for places in groups]
        for block, groups in zip(blocks, alike, strict=True)
    ]


def _alike(block: Block, kept: Axes, copies: tuple[int, ...]) -> list[list[int]]:
    """The places of small arrays that are alike, and of each of the others.

    What is done with an array is compiled once for all that are alike, and not for each of them.
    """
    alike: dict[Any, list[int]] = {}
    for k, (x, n) in enumerate(zip(block, copies, strict=True)):
        small = not kept and isinstance(x.size, int) and x.size <= 1024
        alike.setdefault((n, jax.typeof(x) if small else k), []).append(k)
    return list(alike.values())


def _stack(block: Block, places: list[int]) -> Array:
    return jnp.stack([block[k] for k in places]) if places[1:] else block[places[0]]


def _in_turn(stacks: Sequence[Array], places: Sequence[list[int]]) -> Array:
    """Numbers, or stacks of them, as one vector in the order of their places."""
    if not stacks:
        return jnp.zeros(0)
    widest = _widest(stacks)
    together = jnp.concatenate([jnp.atleast_1d(stack).astype(widest) for stack in stacks])
    order = np.argsort([k for some in places for k in some])
    return together if np.all(order == np.arange(len(order))) else together[order]


def ratio(x: Array, root: Array) -> Array:
    r"""$x / n$, given $\sqrt n$, which has an inverse in range for every normal $n$.

    XLA turns a division by a broadcast number $n$ into a product with $1/n$, which is flushed to 0
    for the largest $n$. A power of two near $1/n$ would do as well, but what is cheap to compute,
    and all that it is made of, XLA computes anew beside every array that it is multiplied with.
    """
    inverse = (1 / root).astype(x.dtype)
    return x * inverse * inverse


def _derivatives(
    norm: Norm,
    form: Form,
    values: Sequence[Array],
    blocks: Sequence[Block],
    blocks_dot: Sequence[Block],
) -> list[Array]:
    r"""$\dot n = \sum_i (|x_i|/n)^{p-1} \mathrm{sgn}(x_i)\,\dot x_i$, and 0 where $n = 0$."""

    def direction(x: Array, value: Array, kept: Axes) -> Array:
        if norm.ord == math.inf:
            largest = expand(value, kept, x.ndim).astype(jnp.finfo(x.dtype).dtype)
            return jnp.sign(x) * (jnp.abs(x) == largest).astype(x.dtype)
        root = expand(jnp.sqrt(jnp.where(value > 0, value, 1)), kept, x.ndim)
        if norm.ord == 2:
            return ratio(x, root)
        return jnp.sign(x) * (ratio(jnp.abs(x), root) ** (norm.ord - 1)).astype(x.dtype)

    blocks, blocks_dot = [[[_wide(x) for x in b] for b in bs] for bs in (blocks, blocks_dot)]
    directions = [
        [direction(x, value, kept) for x in block]
        for value, kept, block in zip(values, form.kept, blocks, strict=True)
    ]
    products = [
        [(d.conj() * dx).real for d, dx in zip(*pair, strict=True)]
        for pair in zip(directions, blocks_dot, strict=True)
    ]
    totals = _sums(form, products, lambda product: product)
    if norm.ord == math.inf:  # entries that tie for the largest share the derivative
        ties = _sums(form, directions, jnp.abs)
        return [total / jnp.maximum(n, 1) for total, n in zip(totals, ties, strict=True)]
    return _means(form, blocks, totals) if norm.mean else totals


def _sums(form: Form, blocks: Sequence[Block], of: Callable) -> list[Float[Array, "..."]]:
    """Sums `of(entry)` over the entries of each block, arrays and devices."""

    def own(block: Block, kept: Axes, copies: Sequence[int]) -> Array:
        parts = [jnp.sum(of(_read(x)), _reduced(kept, x.ndim)) for x in block]
        return _folded(
            operator.add, [p / n if n > 1 else p for p, n in zip(parts, copies, strict=True)]
        )

    each = zip(blocks, form.kept, form.copies, strict=True)
    return over_devices(lax.psum, form.axes, [own(*one) for one in each])


def _largest(
    form: Form, blocks: Sequence[Block], maximum: Callable = jnp.max
) -> list[Float[Array, "..."]]:
    """The largest size of each block's entries; nan where one of them is.

    Sizes are compared as integers, which have the same order: a maximum of integers neither flushes
    a subnormal number nor, reduced over devices, drops nan.
    """
    bits: list[Array] = []
    members: list[list[int]] = []
    for block, kept in zip(blocks, form.kept, strict=True):
        by_dtype: dict[jnp.dtype, list[Array]] = {}
        for x in block:
            largest = maximum(magnitude(_read(x)), _reduced(kept, x.ndim), initial=0)
            by_dtype.setdefault(working_dtype(x.dtype), []).append(largest)
        members.append(list(range(len(bits), len(bits) + len(by_dtype))))
        bits += [functools.reduce(jnp.maximum, parts) for parts in by_dtype.values()]
    sizes = [normal_size(b) for b in over_devices(lax.pmax, form.axes, bits)]
    return [_folded(jnp.maximum, [sizes[k] for k in own]) for own in members]


def _largest_by_array(form: Form, blocks: Sequence[Block]) -> list[ByArray]:
    """The same, and of the arrays alone."""
    alone = _largest(*_alone(form, blocks))
    rest = iter(alone)
    whole = [_folded(jnp.maximum, [next(rest) for _ in block]) for block in blocks]
    return _paired(whole, alone, blocks)


def _read(x: Array) -> Array:
    """The array to compute with, read for that alone.

    Without the barrier XLA keeps what is computed of it here for the next who reads it, such as
    for the scaling by the norm: a float32 copy of every bfloat16 array.
    """
    return _wide(lax.optimization_barrier(x))


def _wide(x: Array) -> Array:
    return x.astype(working_dtype(x.dtype))


def _folded(combine: Callable, parts: Sequence[Array]) -> Array:
    """Combines arrays in the widest of their dtypes."""
    widest = _widest(parts)
    return functools.reduce(combine, [p.astype(widest) for p in parts] or [jnp.zeros((), widest)])


def _widest(arrays: Sequence[Array]) -> jnp.dtype:
    """The widest of the arrays' dtypes, that of the sizes where they are complex."""
    reals = [
        jnp.finfo(x.dtype).dtype if jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype
        for x in arrays
    ]
    return max(reals, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def _means(form: Form, blocks: Sequence[Block], totals: Sequence[Array]) -> list[Array]:
    """Divides totals by the number of entries of each block over all devices, at least 1."""

    def entries(block: Block, kept: Axes, copies: Sequence[int]) -> Any:
        number = devices(form.axes)
        shares = [math.prod(x.shape[axis] for axis in _reduced(kept, x.ndim)) for x in block]
        return sum(share * (number // n) for share, n in zip(shares, copies, strict=True))

    numbers = map(entries, blocks, form.kept, form.copies)
    return [t / jnp.maximum(count(n, t.dtype), 1) for t, n in zip(totals, numbers, strict=True)]


def count(number: Any, dtype: jnp.dtype) -> Array:
    """A number of entries as an array: it may exceed every integer of JAX, or be symbolic."""
    return jnp.asarray(float(number) if isinstance(number, int) else number).astype(dtype)


def square(x: Array) -> Array:
    r"""$|x|^2$, real also where $x$ is complex."""
    return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


def _power(x: Array, ord: float) -> Array:
    if ord == 2:
        return square(x)
    return jnp.abs(x) if ord == 1 else jnp.abs(x) ** ord


def _root(ord: float, total: Array) -> Array:
    if ord == 1:
        return total
    return jnp.sqrt(total) if ord == 2 else total ** (1 / ord)


def _reduced(kept: Axes, ndim: int) -> Axes:
    return tuple(axis for axis in range(ndim) if axis not in kept)
