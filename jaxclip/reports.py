"""What an optimizer's state tells: the metrics of every clip, names for its leaves, and a log."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from .clip_metrics import ClipMetrics
from .leaves import Path, is_absent, leaves_with_path

# Fields without an array are not written out.
_ALWAYS = set(ClipMetrics._fields) - set(ClipMetrics._field_defaults)


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
            clips.append((name, ClipMetrics(**_arrays(fields))))
    taken = {name for name, _ in clips}
    found: dict[str, ClipMetrics] = {}
    for name, value in clips:
        free = (
            f"{name}_{k}" for k in itertools.count(2) if f"{name}_{k}" not in taken | set(found)
        )
        found[next(free) if name in found else name] = value
    return found


def names(tree: PyTree, mask: Any = None) -> list[str]:
    """Returns a name for every leaf of the parameters, which an index in the metrics is a place in.

    Args:
      tree: the parameters, or a gradient. A place that holds None is counted.
      mask: that of `optax.masked` around the clip; of `optax.partition` a tree that is true where
        the label is the clip's. Within them a clip sees no other leaves.

    Returns:
      The paths, such as `"layers/0/kernel"`; of a tree that is one array, `""`.

    Raises:
      ValueError: the mask is no prefix of the tree.

    Examples:
      >>> import jax.numpy as jnp, jaxclip
      >>> tx = jaxclip.clip_by_global_norm(1.0)
      >>> gradient = {"head": jnp.array([0.1]), "layers": [jnp.array([0.3]), jnp.array([9.0])]}
      >>> _, state = tx.update(gradient, tx.init(gradient))
      >>> print(jaxclip.names(gradient)[jaxclip.metrics(state)["clip"].largest])
      layers/1
    """
    if mask is not None:
        of_tree = mask(tree) if callable(mask) else mask
        tree = jax.tree.map(lambda m, x: x if m else optax.MaskedNode(), of_tree, tree)
    entries, _ = leaves_with_path(tree, is_leaf=is_absent)
    return [_name(path) for path, _ in entries]


def log(metrics_or_opt_state: Any) -> dict[str, float]:
    """Returns the metrics of all clips as plain numbers, for JSON, TensorBoard or W&B.

    Args:
      metrics_or_opt_state: what `jaxclip.metrics` takes or returns, or one of the latter's values.

    Returns:
      A flat dict from `"clip/norm"`, with the name of the clip ahead, to a Python float. Where
      groups, or by `detail="blocks"` all blocks, have names, it has `"clip/norm/head"` and
      `"clip/limit/head"` in place of what is pooled over them. It waits for the device once.

    Raises:
      ValueError: the metrics are those of many steps, as `scan` stacks them.

    Examples:
      >>> import jax.numpy as jnp, jaxclip
      >>> tx = jaxclip.clip_by_global_norm(1.0)
      >>> gradient = jnp.array([3.0, 4.0])
      >>> _, state = tx.update(gradient, tx.init(gradient))
      >>> print(jaxclip.log(state)["clip/norm"])
      5.0
    """
    alone = isinstance(metrics_or_opt_state, ClipMetrics)
    found = {"clip": metrics_or_opt_state} if alone else metrics(metrics_or_opt_state)
    numbers: dict[str, float] = {}
    for clip, one in jax.device_get(found).items():
        if np.ndim(one.norm):
            raise ValueError(
                f"The metrics of {clip!r} have the shape {np.shape(one.norm)}, those of many steps "
                "or members: log one at a time, as `jax.tree.map(lambda x: x[-1], metrics)` gives."
            )
        by_name = {"norm": one.norms, "limit": one.limits}
        for field in sorted(_ALWAYS, key=ClipMetrics._fields.index):
            if field not in by_name or not jax.tree.leaves(one.limits):
                numbers[f"{clip}/{field}"] = float(getattr(one, field))
        for field, tree in by_name.items():
            for path, blocks in leaves_with_path(tree)[0]:
                for index, value in np.ndenumerate(blocks):
                    numbers["/".join([clip, field, _name(path), *map(str, index)])] = float(value)
    return numbers


def _name(path: Path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_metrics(value: Any) -> bool:
    # A state that was written out, by `nnx.state` or to a checkpoint, has dicts for named tuples.
    written_out = isinstance(value, Mapping) and set(value) >= _ALWAYS
    return written_out or isinstance(value, ClipMetrics)


def _arrays(fields: Mapping[str, Any]) -> dict[str, Any]:
    # Flax NNX wraps every array of an optimizer's state in a variable of its own.
    def is_variable(x: Any) -> bool:
        return hasattr(x, "get_value")

    return jax.tree.map(
        lambda x: x.get_value() if is_variable(x) else x, dict(fields), is_leaf=is_variable
    )
