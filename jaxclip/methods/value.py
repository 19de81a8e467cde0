"""Clipping by value, which has a way of its own: every block is one entry."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .. import shrinks
from ..core import ClipState, Nonfinite, as_thresholds, clip, given_limits, is_threshold
from ..leaves import measured, replaced, scale
from ..measures import per_entry
from ..metrics import observed, share
from ..norms import l2, rms, working_dtype
from ..thresholds import Limitable
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
    if any(map(is_threshold, jax.tree.leaves(limit, is_leaf=is_threshold))):
        return by_factor  # a threshold may want to see, and to learn from, every entry
    thresholds = as_thresholds(limit)

    # The same outcome and state, without an array of norms and one of factors.
    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipState]:
        arrays, structure = jax.tree.flatten(measured(updates))
        before = state.metrics[name]
        dtype = before.norm.dtype
        limits = given_limits(thresholds, structure.unflatten(arrays), state.step, dtype)
        pairs = list(zip(arrays, limits, strict=True))
        clamped = [_clamp(x, limit, nonfinite) for x, limit in pairs]
        sizes = rms([arrays, clamped], [(), ()])
        entries = max(1, sum(x.size for x in arrays))
        weighted = [limit * math.sqrt(x.size / entries) for x, limit in pairs]
        shrunk = [(jnp.abs(x).astype(dtype) > c) & jnp.isfinite(x) for x, c in pairs]
        step = state.step + 1
        seen = observed(before, [*sizes, *l2([weighted], [()])], share(shrunk), step)
        return replaced(updates, structure.unflatten(clamped)), ClipState(
            step, state.thresholds, {name: seen}
        )

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
