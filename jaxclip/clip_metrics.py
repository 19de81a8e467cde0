"""The record of what a clip did, kept in the optimizer's state, where it costs no second pass."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from . import norms
from .arguments import check_leaves
from .devices import Across, Names, across, devices, over_devices
from .leaves import is_none
from .reductions import number

MEMORY = 100  # steps, of the mean norm

rms_by_array = dataclasses.replace(norms.rms, by_array=True)


class ClipMetrics(NamedTuple):
    """Metrics of a clip: of the last step, and of all steps so far.

    Where a clip has many blocks, the first three are root mean squares over the blocks. A *leaf* is
    one of the updates, as `jaxclip.names` counts them; of `clip_by_group_norm` it is a group.

    Attributes:
      norm: the gradient's norm before the clip.
      clipped_norm: its norm after the clip.
      limit: what the norm was compared with; `inf` before the first step.
      clipped: the share of the blocks that were shrunk, from 0 to 1.
      clip_rate: the share of the steps so far in which any block was shrunk.
      nonfinite: the number of steps so far in which a block held nan or infinity, or its limit was
        nan; of the wrappers also those whose loss was not finite.
      largest: the index of the leaf with the largest norm, of its blocks' root mean square where it
        has several; -1 before the first step, and where `grad_norm=` gave the norm alone.
      first_nonfinite: the index of the first leaf that held nan or infinity, when a step last did
        after one that did not; -1 if none has.
      max_norm: the largest finite `norm` so far.
      mean_norm: the average of `norm` over the finite steps: of all up to the hundredth, and moving
        from there on, by a hundredth a step.
      norms: the norms by name, of groups, and with `detail="blocks"` of all blocks, in the
        structure of the measure's norms; of the whole tree those of its leaves, of entries and
        singular values their root mean square in each leaf. Empty otherwise.
      limits: the limits beside them, where a block has one of its own.
    """

    norm: Float[Array, ""]
    clipped_norm: Float[Array, ""]
    limit: Float[Array, ""]
    clipped: Float[Array, ""]
    clip_rate: Float[Array, ""]
    nonfinite: Int[Array, ""]
    largest: Int[Array, ""]
    first_nonfinite: Int[Array, ""]
    max_norm: Float[Array, ""]
    mean_norm: Float[Array, ""]
    norms: PyTree[Float[Array, "..."]] = ()
    limits: PyTree[Float[Array, "..."]] = ()


class Seen(NamedTuple):
    """What a clip saw at one step.

    Attributes:
      norm: of the gradient, and so on as in `ClipMetrics`.
      clipped_norm: as there.
      limit: as there.
      clipped: as there.
      leaves: the norm of every leaf that has one; empty where none is known.
      places: the indices of these leaves, where they are not all.
      norms: as there.
      limits: as there.
      nonfinite: whether something besides the norm was not finite, such as the loss.
    """

    norm: Float[Array, ""]
    clipped_norm: Float[Array, ""]
    limit: Float[Array, ""]
    clipped: Float[Array, ""]
    leaves: Float[Array, " leaves"]
    places: Int[np.ndarray | Array, " leaves"] | None = None
    norms: PyTree[Float[Array, "..."]] = ()
    limits: PyTree[Float[Array, "..."]] = ()
    nonfinite: Bool[Array, ""] | bool = False


def initial(dtype: jnp.dtype, norms: PyTree = (), limits: PyTree = ()) -> ClipMetrics:
    """Returns the metrics before the first step, given the shapes of the norms by name."""
    zero, none = jnp.zeros((), dtype), jnp.full((), -1, jnp.int32)
    infinite = jnp.full((), jnp.inf, dtype)
    return ClipMetrics(
        norm=zero,
        clipped_norm=zero,
        limit=infinite,
        clipped=zero,
        clip_rate=zero,
        nonfinite=jnp.zeros((), jnp.int32),
        largest=none,
        first_nonfinite=none,
        max_norm=zero,
        mean_norm=zero,
        norms=jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), norms),
        limits=jax.tree.map(lambda x: jnp.full(x.shape, jnp.inf, dtype), limits),
    )


@jax.jit  # one call where there is no `jit` around it
def observe(before: ClipMetrics, seen: Seen, steps: Int[Array, ""]) -> ClipMetrics:
    """Returns the metrics after one more step, which makes it `steps` in all."""
    dtype = before.norm.dtype
    norm, limit = seen.norm.astype(dtype), seen.limit.astype(dtype)
    shrank = (seen.clipped > 0).astype(dtype)
    finite = jnp.isfinite(norm)
    nonfinite = before.nonfinite + (~finite | jnp.isnan(limit) | seen.nonfinite).astype(jnp.int32)
    largest, first = _extreme(seen.leaves, seen.places)
    # After a train of steps that are not finite, all arrays are nan: where it began is what tells.
    begins = ~finite & jnp.isfinite(before.norm)
    share = 1 / jnp.clip((steps - nonfinite).astype(dtype), 1, MEMORY)
    return ClipMetrics(
        norm=norm,
        clipped_norm=seen.clipped_norm.astype(dtype),
        limit=limit,
        clipped=seen.clipped.astype(dtype),
        clip_rate=before.clip_rate + (shrank - before.clip_rate) / steps.astype(dtype),
        nonfinite=nonfinite,
        largest=largest,
        first_nonfinite=jnp.where(begins, first, before.first_nonfinite),
        max_norm=jnp.where(finite, jnp.maximum(before.max_norm, norm), before.max_norm),
        mean_norm=before.mean_norm + jnp.where(finite, norm - before.mean_norm, 0) * share,
        norms=_onto(before.norms, seen.norms, 0),
        limits=_onto(before.limits, seen.limits, jnp.inf),
    )


def _extreme(
    leaves: Float[Array, " leaves"], places: Int[np.ndarray | Array, " leaves"] | None
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The index of the largest norm, and of the first that is not finite; -1 where there is none.

    What is not finite is larger than all that is.
    """
    none = jnp.full((), -1, jnp.int32)
    if not leaves.size:
        return none, none
    finite = jnp.isfinite(leaves)
    index = jnp.argmax(jnp.where(finite, leaves, jnp.inf)).astype(jnp.int32)
    index = index if places is None else jnp.asarray(places)[index]
    return index, jnp.where(jnp.all(finite), none, index)


def _onto(before: PyTree[Array], now: PyTree[Array | None], absent: float) -> PyTree[Array]:
    """Numbers in the structure that they had before, where some have no gradient at this step."""
    if isinstance(before, dict) and isinstance(now, dict):
        now = dict.fromkeys(before) | now
    check_leaves(now, before, "`init` saw")
    old, structure = jax.tree.flatten(before, is_leaf=is_none)
    new = jax.tree.leaves(now, is_leaf=is_none)
    return structure.unflatten(
        [
            o if o is None else jnp.full_like(o, absent) if n is None else n.astype(o.dtype)
            for o, n in zip(old, new, strict=True)
        ]
    )


def pool(
    blocks: Sequence[Float[Array, "..."]],
    *others: Sequence[Float[Array, "..."]],
    apart: Sequence[Names] = (),
) -> tuple[list[Float[Array, ""]], Float[Array, " leaves"]]:
    """The root mean squares over all blocks, and of the first value also those of each leaf.

    They are nan or infinite where the value of any block is.

    Args:
      blocks: the norm of every block, in as many arrays as there are arrays of blocks.
      *others: further values of every block.
      apart: of each of these arrays, the mapped axes along which every device has blocks of its
        own.
    """
    values, kept = [blocks, *others], [()] * (1 + len(others))
    over = across([apart] * len(values)) if apart else ()
    if any(apart) or any(x.ndim for x in blocks):
        pooled, leaves = zip(*rms_by_array(values, kept, over), strict=True)
        return list(pooled), leaves[0]
    leaves = jnp.stack(blocks) if blocks else jnp.zeros(0)
    if len(blocks) == 1:
        return [one for [one] in values], leaves
    return norms.rms(values, kept, over), leaves


def share(blocks: Sequence[Bool[Array, "..."]], apart: Sequence[Names] = ()) -> Float[Array, ""]:
    """The share of the blocks of which something is true; `apart` is as in `pool`."""
    [over] = across([apart or [()] * len(blocks)])
    axes, copies = over
    sizes = [block.size * (devices(axes) // n) for block, n in zip(blocks, copies, strict=True)]
    return total([number(block) for block in blocks], over) / jnp.maximum(
        norms.count(sum(sizes), jnp.dtype(jnp.float32)), 1
    )


def total(parts: Sequence[Float[Array, ""]], over: Across) -> Float[Array, ""]:
    """The sum of numbers of which each device has its own, or the same as others."""
    dtype = parts[0].dtype if parts else jnp.float32
    own = [part / n for part, n in zip(parts, over.copies, strict=True)]
    [found] = over_devices(lax.psum, over.axes, [sum(own, start=jnp.zeros((), dtype))])
    return found
