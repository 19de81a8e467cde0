"""The strategies: by rules, by `vmap`, in microbatches."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .. import norms
from . import checks
from .batch import norms_of, run
from .checks import Blocks
from .decision import Info, Options, decide, info_of
from .rounding import bound_of_norms
from .total import total


def by_rules(
    loss: Callable,
    blocks: Blocks,
    options: Options,
    params: PyTree,
    batch: Sequence[Any],
    mask: Array,
    divisor: Array,
) -> tuple[PyTree, Info]:
    """The clipped sum of a batch by the form that is cheapest for each parameter."""
    backward = run(loss, params, batch, mask.shape[0], options.has_aux, blocks, options.form)
    found, gradients = norms_of(backward, blocks, mask, options.bound)
    decided = decide(found, mask, divisor, blocks.limits, options)
    sums = total(
        backward,
        gradients,
        decided.factors,
        blocks.of,
        ~decided.takes_part,
        functools.reduce(operator.and_, [jnp.all(jnp.isfinite(norm)) for norm in found]),
    )
    info = info_of(backward.arrays.values, found, decided, mask, backward.aux)
    return jax.tree.unflatten(jax.tree.structure(params), sums), info


def by_vmap(
    loss: Callable,
    blocks: Blocks,
    options: Options,
    params: PyTree,
    batch: Sequence[Any],
    mask: Array,
    divisor: Array,
) -> tuple[PyTree, Info]:
    """The clipped sum of a batch by its definition: the gradient of every example."""
    shapes = jax.tree.map(checks.abstract, params), jax.tree.map(checks.one_of_batch, batch)
    checks.trace(loss, *shapes, options.has_aux)
    of_one = jax.value_and_grad(loss, has_aux=options.has_aux)
    results, tree = jax.vmap(of_one, in_axes=(None, *(0 for _ in batch)))(params, *batch)
    values, aux = results if options.has_aux else (results, None)
    grads, treedef = jax.tree.flatten(tree)
    members = [
        [g for g, b in zip(grads, blocks.of, strict=True) if b == i]
        for i in range(len(blocks.limits))
    ]
    found = (
        bound_of_norms(members, len(mask))
        if options.bound
        else norms.l2(members, [(0,) for _ in members])
    )
    found = [
        n if group else jnp.zeros_like(values) for n, group in zip(found, members, strict=True)
    ]
    decided = decide(found, mask, divisor, blocks.limits, options)

    def summed(grad: Array, block: int) -> Array:
        axes = range(1, grad.ndim)
        factor = jnp.expand_dims(decided.factors[block], axes)
        part = jnp.expand_dims(decided.takes_part, axes)
        return jnp.sum(jnp.where(part, grad * factor.astype(norms.working_dtype(grad.dtype)), 0), 0)

    sums = [
        summed(g.astype(norms.working_dtype(g.dtype)), b)
        for g, b in zip(grads, blocks.of, strict=True)
    ]
    return treedef.unflatten(sums), info_of(values, found, decided, mask, aux)


def in_microbatches(
    clip: Callable,
    size: int,
    params: PyTree,
    batch: Sequence[Any],
    mask: Array,
    divisor: Array,
) -> tuple[PyTree, Info]:
    """The clipped sum of a batch, so many examples at a time."""
    total = mask.shape[0]
    size = min(size, total)
    count = -(-total // size)

    # A microbatch is every `count`-th example, so that each device has its share of each. The last
    # ones are filled up with repetitions of an example, which are masked out.
    index = jnp.arange(count * size, dtype=jnp.int32)

    def split(x: Array) -> Array:
        whole = x if count * size == total else jnp.take(x, jnp.minimum(index, total - 1), axis=0)
        return jnp.swapaxes(whole.reshape(size, count, *x.shape[1:]), 0, 1)

    def join(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape(count * size, *x.shape[2:])[:total]

    def one(sums: PyTree, part: tuple) -> tuple[PyTree, Info]:
        batch, mask = part
        grads, info = clip(params, batch, mask, divisor)
        return jax.tree.map(lambda s, g: s + g.astype(s.dtype), sums, grads), info

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, norms.working_dtype(p.dtype)), params)
    real = jnp.swapaxes((index < total).reshape(size, count), 0, 1)
    parts = jax.tree.map(split, tuple(batch)), split(mask) & real
    sums, info = lax.scan(one, zeros, parts)
    nonfinite = jnp.sum(info.nonfinite, dtype=jnp.int32)
    joined = jax.tree.map(join, info._replace(nonfinite=None))
    return sums, joined._replace(nonfinite=nonfinite)
