"""Thresholds made of others."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .base import Limit, LimitLike, Norm, Now, Threshold, as_threshold, check_warmup


def lowest(*limits: LimitLike) -> Threshold:
    r"""The lowest of several limits.

    $$\tau = \min_i \tau_i$$

    Args:
      *limits: $\tau_i$, numbers, arrays, schedules or thresholds. All of them see every norm.

    Raises:
      ValueError: no threshold is given.

    Examples:
      >>> import jaxclip
      >>> from jaxclip.thresholds import lowest, relative
      >>> tx = jaxclip.clip(jaxclip.measures.per_leaf(), lowest(1.0, relative(0.01)))
    """
    if not limits:
        raise ValueError(
            "`lowest` got no limits, and there is no lowest of none. Give one or more."
        )
    parts = [as_threshold(limit) for limit in limits]

    def init(norm: Norm) -> tuple:
        return tuple(part.init(norm) for part in parts)

    def update(norm: Norm, state: tuple, now: Now) -> tuple[Limit, tuple]:
        limits, states = zip(
            *[part.update(norm, s, now) for part, s in zip(parts, state, strict=True)],
            strict=True,
        )
        return jnp.min(jnp.stack([jnp.asarray(limit, norm.dtype) for limit in limits])), states

    return Threshold(init, update, any(part.reads_params for part in parts))


def cascade(first: LimitLike, second: LimitLike) -> Threshold:
    r"""Two limits in turn: the second sees the norms that the first has clipped.

    $$\tau = \min(\tau_1(n),\ \tau_2(\min(n, \tau_1)))$$

    Args:
      first: $\tau_1$.
      second: $\tau_2$; it learns from clipped norms.

    Examples:
      >>> import jaxclip
      >>> from jaxclip.thresholds import cascade, ema
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), cascade(1.0, ema(1.05, decay=0.98)))
    """
    before, after = as_threshold(first, name="first"), as_threshold(second, name="second")

    def init(norm: Norm) -> tuple:
        return before.init(norm), after.init(norm)

    def update(norm: Norm, state: tuple, now: Now) -> tuple[Limit, tuple]:
        limit, state_before = before.update(norm, state[0], now)
        limit = jnp.maximum(jnp.asarray(limit, norm.dtype), 0)
        own, state_after = after.update(jnp.minimum(norm, limit), state[1], now)
        return jnp.minimum(limit, jnp.asarray(own, norm.dtype)), (state_before, state_after)

    return Threshold(init, update, before.reads_params or after.reads_params)


def warmup_then(warmup: int | Array, before: LimitLike, after: LimitLike) -> Threshold:
    r"""One limit for the first steps, and another for all that follow.

    $$\tau_t = \tau^{\mathrm{before}}_t \text{ if } t < T \text{ else } \tau^{\mathrm{after}}_t$$

    Args:
      warmup: $T$, in steps.
      before: the limit of the first $T$ steps.
      after: the limit that follows. It sees the norms of the warm-up, too, and learns from them.

    Examples:
      >>> import jaxclip
      >>> limit = jaxclip.thresholds.warmup_then(1000, 10.0, 1.0)
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), limit)

    Source:
      The warm-up of the limit in OLMo.
    """
    check_warmup(warmup)
    first, second = as_threshold(before, name="before"), as_threshold(after, name="after")

    def init(norm: Norm) -> tuple:
        return first.init(norm), second.init(norm)

    def update(norm: Norm, state: Any, now: Now) -> tuple[Limit, tuple]:
        early, first_state = first.update(norm, state[0], now)
        late, second_state = second.update(norm, state[1], now)
        limit = jnp.where(
            now.step < warmup, jnp.asarray(early, norm.dtype), jnp.asarray(late, norm.dtype)
        )
        return limit, (first_state, second_state)

    return Threshold(init, update, first.reads_params or second.reads_params)
