"""Metrics of a clip, kept in the optimizer's state, where they cost no second pass."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from . import norms
from .devices import Across, Names, across, devices, over_devices
from .reductions import number


class ClipMetrics(NamedTuple):
    """Metrics of a clip: of the last step, and of all steps so far.

    Where a clip has many blocks, the first three are root mean squares over the blocks.

    Attributes:
      norm: the gradient's norm before the clip.
      clipped_norm: its norm after the clip.
      limit: what the norm was compared with; `inf` before the first step.
      clipped: the share of the blocks that were shrunk, from 0 to 1.
      clip_rate: the share of the steps so far in which any block was shrunk.
      nonfinite: the number of steps so far in which a block held nan or infinity, or its limit was
        nan.
    """

    norm: Float[Array, ""]
    clipped_norm: Float[Array, ""]
    limit: Float[Array, ""]
    clipped: Float[Array, ""]
    clip_rate: Float[Array, ""]
    nonfinite: Int[Array, ""]


def initial(dtype: jnp.dtype) -> ClipMetrics:
    """Returns the metrics before the first step."""
    zero = jnp.zeros((), dtype)
    return ClipMetrics(
        zero, zero, jnp.full((), jnp.inf, dtype), zero, zero, jnp.zeros((), jnp.int32)
    )


def observe(
    before: ClipMetrics,
    sizes: Sequence[Float[Array, ""]],
    clipped: Float[Array, ""],
    steps: Int[Array, ""],
) -> ClipMetrics:
    """Returns the metrics after one more step, which makes it `steps` in all.

    The sizes are those of the norm, the clipped norm and the limit.
    """
    norm, clipped_norm, limit = sizes
    dtype = before.norm.dtype
    shrank = (clipped > 0).astype(dtype)
    return ClipMetrics(
        norm.astype(dtype),
        clipped_norm.astype(dtype),
        limit.astype(dtype),
        clipped.astype(dtype),
        before.clip_rate + (shrank - before.clip_rate) / steps.astype(dtype),
        before.nonfinite + (~jnp.isfinite(norm) | jnp.isnan(limit)).astype(jnp.int32),
    )


def pool(
    *values: Sequence[Float[Array, "..."]], apart: Sequence[Names] = ()
) -> list[Float[Array, ""]]:
    """The root mean squares over all blocks; nan or infinite where the value of any block is.

    Args:
      *values: a value of every block, in as many arrays as there are arrays of blocks.
      apart: of each of these, the mapped axes along which every device has blocks of its own.
    """
    if not any(apart) and all(len(blocks) == 1 and blocks[0].ndim == 0 for blocks in values):
        return [blocks[0] for blocks in values]
    over = across([apart] * len(values)) if apart else ()
    return norms.rms(values, [()] * len(values), over)


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


def metrics(opt_state: Any) -> dict[str, ClipMetrics]:
    """Returns what every clip in an optimizer's state did, by the name of the clip.

    Args:
      opt_state: any tree that holds the state of a clip: of a chain, `optax.partition`, `masked`,
        `MultiSteps`, `inject_hyperparams`, a Linen `TrainState` or an `nnx.Optimizer`, stacked by
        `vmap` or `scan` or not, or written out by `nnx.state` or to a checkpoint.

    Returns:
      The metrics of each clip, in the order of the state. Of clips that have the same name, the
      second is called `name_2`, and so on; give them names of their own by `name=`.

    Examples:
      >>> import jax.numpy as jnp, jaxclip, optax
      >>> tx = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1))
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, opt_state = tx.update(params, tx.init(params))
      >>> print(jaxclip.metrics(opt_state)["clip"].norm)
      5.0
    """
    clips: list[tuple[str, ClipMetrics]] = []
    entries, _ = jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=_is_metrics)
    for path, value in entries:
        if _is_metrics(value):
            name = path[-1].key
            fields = value if isinstance(value, Mapping) else value._asdict()
            clips.append((name, ClipMetrics(**{field: _array(x) for field, x in fields.items()})))
    taken = {name for name, _ in clips}
    found: dict[str, ClipMetrics] = {}
    for name, value in clips:
        free = (
            f"{name}_{k}" for k in itertools.count(2) if f"{name}_{k}" not in taken | set(found)
        )
        found[next(free) if name in found else name] = value
    return found


def _is_metrics(value: Any) -> bool:
    # A state that was written out, by `nnx.state` or to a checkpoint, has dicts for named tuples.
    written_out = isinstance(value, Mapping) and set(value) == set(ClipMetrics._fields)
    return written_out or isinstance(value, ClipMetrics)


def _array(value: Any) -> Any:
    # Flax NNX wraps every array of an optimizer's state in a variable of its own.
    return value.get_value() if hasattr(value, "get_value") else value
