"""Clipping by value, which has a way of its own: every block is one entry."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .. import shrinks
from ..core import ClipState, Nonfinite, as_thresholds, clip, matched
from ..measures import measured, per_entry, scale
from ..metrics import observed, share
from ..norms import l2, rms, working_dtype
from ..thresholds import Limitable, Now, Threshold
from .named import method


@method()
def clip_by_value(
    limit: PyTree[Limitable | None], *, nonfinite: Nonfinite = "propagate", name: str = "clip"
) -> optax.GradientTransformationExtraArgs:
    r"""Clips every entry to the interval from minus to plus the limit.

    $$u_i = \min(\max(g_i, -\tau), \tau)$$

    Complex entries are scaled to the modulus $\tau$.

    Args:
      limit: $\tau$; a tree of limits may tell the arrays apart, None meaning unlimited.
      nonfinite: as in `clip`; a block is one entry.
      name: as in `clip`.

    Returns:
      The transformation. Its metrics are root mean squares over the entries.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_value(1.0)
      >>> gradient = jnp.array([0.5, -3.0])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [ 0.5 -1. ]

    Source:
      `optax.clip`, `torch.nn.utils.clip_grad_value_`.
    """
    by_factor = clip(per_entry(), limit, nonfinite=nonfinite, name=name)
    if any(isinstance(one, Threshold) for one in jax.tree.leaves(limit, is_leaf=_is_threshold)):
        return by_factor  # a threshold may want to see, and to learn from, every entry
    thresholds = as_thresholds(limit)

    # The same outcome and state, without an array of norms and one of factors.
    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipState]:
        arrays = measured(updates)
        before = state.metrics[name]
        zero, now = jnp.zeros_like(before.norm), Now(state.step, None, extra_args)
        pairs = [
            (x, jnp.maximum(jnp.asarray(one.update(zero, (), now)[0], zero.dtype), 0))
            for one, x in matched(thresholds, arrays)
        ]
        clamped = [_clamp(x, limit, nonfinite) for x, limit in pairs]
        entries = max(1, sum(x.size for x, _ in pairs))
        weighted = [limit * math.sqrt(x.size / entries) for x, limit in pairs]
        norm, clipped_norm = rms([[x for x, _ in pairs], clamped], [(), ()])
        shrunk = [(jnp.abs(x).astype(zero.dtype) > c) & jnp.isfinite(x) for x, c in pairs]
        step = state.step + 1
        seen = observed(before, norm, clipped_norm, *l2([weighted], [()]), share(shrunk), step)
        by_leaf = jax.tree.unflatten(jax.tree.structure(arrays), clamped)
        updates = jax.tree.map(lambda x, u: x if u is None else u, updates, by_leaf)
        return updates, ClipState(step, state.thresholds, {name: seen})

    return optax.GradientTransformationExtraArgs(by_factor.init, update)


def _clamp(x: Array, limit: Float[Array, ""], nonfinite: Nonfinite) -> Array:
    if jnp.iscomplexobj(x):
        size = jnp.abs(x)
        clamped = scale(x, shrinks.hard(size, limit.astype(size.dtype)))
    else:
        wide = limit.astype(working_dtype(x.dtype))
        clamped = jnp.clip(x.astype(wide.dtype), -wide, wide).astype(x.dtype)
    bad = jnp.array(0 if nonfinite == "zero" else jnp.nan, x.dtype)
    return jnp.where(jnp.isfinite(x), clamped, bad)


def _is_threshold(x: Any) -> bool:
    return isinstance(x, Threshold)
