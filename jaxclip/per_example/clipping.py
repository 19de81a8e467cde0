"""From a loss and a batch to its clipped gradient, or to its norms."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from . import checks
from .backward import Arrays
from .batch import norms_of, run
from .checks import Blocks
from .decision import Info, Options, mask_and_count
from .devices import axes_of, on_automatic_axes, spread, varying
from .forms import Form
from .strategies import by_rules, by_vmap, in_microbatches


def clipped(
    loss: Callable,
    limit: PyTree,
    options: Options,
    params: PyTree,
    batch: Sequence[Any],
    example_mask: Bool[Array, " batch"] | None,
) -> tuple[PyTree, Info]:
    """The sum or mean of the clipped gradients of a batch."""
    checks.check_params(params)
    blocks = checks.blocks_of(limit, params)
    size = checks.batch_size(batch, example_mask)
    mask, count = mask_and_count(example_mask, size)
    checks.check_devices(params, batch, options.strategy, options.microbatch_size)
    params, batch = _as_varying_as(params, batch), spread(tuple(batch))
    divisor = count if options.reduce == "mean" else jnp.ones_like(count)
    if options.strategy == "microbatch":
        assert options.microbatch_size is not None  # `check_microbatch`
        sums, info = in_microbatches(
            functools.partial(by_rules, loss, blocks, options),
            options.microbatch_size,
            params,
            batch,
            mask,
            divisor,
        )
    else:
        way = by_rules if options.strategy == "auto" else by_vmap
        sums, info = way(loss, blocks, options, params, batch, mask, divisor)
    gradient = jax.tree.map(lambda s, p: s.astype(p.dtype), sums, params)
    unflatten = blocks.treedef.unflatten
    return gradient, info._replace(norms=unflatten(info.norms), clipped=unflatten(info.clipped))


def norms_of_blocks(
    loss: Callable,
    params: PyTree,
    batch: Sequence[Any],
    size: int,
    has_aux: bool,
    blocks: Blocks,
    form: Form,
    bound: bool,
) -> PyTree:
    """The norms of the gradients of a batch, `[batch]` for every block."""
    checks.check_devices(params, batch, "auto", None)
    batch = spread(tuple(batch))
    backward = run(loss, _as_varying_as(params, batch), batch, size, has_aux, blocks, form)

    def norms(arrays: Arrays) -> list[Array]:
        mask = jnp.ones(size, jnp.bool_)
        return norms_of(backward._replace(arrays=arrays), blocks, mask, bound)[0]

    found = on_automatic_axes(norms, batch, lambda own, _: own)(backward.arrays)
    return blocks.treedef.unflatten(found)


def _as_varying_as(params: PyTree, batch: Any) -> PyTree:
    # A parameter that is the same on all devices has a derivative that is summed over them, which
    # would add the examples of different devices up before they are clipped.
    axes = axes_of(batch)
    return jax.tree.map(lambda p: varying(p, axes), params)
