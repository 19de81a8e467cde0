"""From a loss and a batch to its clipped gradient, or to its norms."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from ..devices import spread_out
from . import checks
from .batch import norms_of, run
from .checks import Blocks
from .decision import Info, Options, mask_and_count
from .devices import axes_of, on_automatic_axes, sharding_of, spread
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

    def sums_and_info(
        params: PyTree, batch: tuple, mask: Array, divisor: Array, limits: list[Any]
    ) -> tuple[PyTree, Info]:
        here = blocks._replace(limits=limits)
        if options.strategy == "microbatch":
            assert options.microbatch_size is not None  # `check_microbatch`
            return in_microbatches(
                functools.partial(by_rules, loss, here, options),
                options.microbatch_size,
                params,
                batch,
                mask,
                divisor,
            )
        way = by_rules if options.strategy == "auto" else by_vmap
        return way(loss, here, options, params, batch, mask, divisor)

    automatic = on_automatic_axes(
        sums_and_info,
        batch,
        lambda own, rest: (
            jax.tree.map(lambda p: sharding_of(p, rest.mesh), params),
            Info(own, own, own, rest, own),
        ),
    )
    sums, info = automatic(params, batch, mask, divisor, blocks.limits)
    gradient = jax.tree.map(lambda s, p: s.astype(options.dtype or p.dtype), sums, params)
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
    params, batch = _as_varying_as(params, batch), spread(tuple(batch))

    def norms(params: PyTree, batch: tuple) -> list[Array]:
        backward = run(loss, params, batch, size, has_aux, blocks, form)
        return norms_of(backward, blocks, jnp.ones(size, jnp.bool_), bound)[0]

    found = on_automatic_axes(norms, batch, lambda own, _: own)(params, batch)
    return blocks.treedef.unflatten(found)


def _as_varying_as(params: PyTree, batch: Any) -> PyTree:
    # A parameter that is the same on all devices has a derivative that is summed over them, which
    # would add the examples of different devices up before they are clipped.
    axes = axes_of(batch)
    return jax.tree.map(lambda p: spread_out(p, axes), params)
