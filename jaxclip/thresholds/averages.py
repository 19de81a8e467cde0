"""Thresholds that remember an average of the norms."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .base import Feed, Limit, Norm, Now, Threshold, checked, choice, fed

Number = float | Array


class Average(NamedTuple):
    """The state of `ema`: the average, and the number of norms that it has taken in."""

    mean: Float[Array, ""]
    seen: Int[Array, ""]


def ema(
    ratio: Number,
    *,
    decay: Number,
    warmup: int | Array = 0,
    start: Literal["mean", "smallest"] = "mean",
    feed: Feed = "clipped",
) -> Threshold:
    r"""A limit in proportion to the exponential moving average of the norms.

    $$\tau_t = \lambda\,\gamma_{t-1}, \qquad \gamma_t = \beta\,\gamma_{t-1} + (1 - \beta)\,x_t$$

    Args:
      ratio: $\lambda$.
      decay: $\beta$, from 0 to 1; the half-life is $\ln 2 / (1 - \beta)$ steps.
      warmup: the number of steps without a limit. There is none either before a first finite norm.
      start: what the norms of the warm-up (or else the first one) leave as $\gamma$: their mean, or
        the smallest of them, which one zero gradient makes zero.
      feed: $x_t$. `"clipped"` is $\min(n_t, \tau_t)$: the limit rises by
        $1 + (1-\beta)(\lambda-1)$ a step at most, and with a small $\lambda$ hardly follows a
        change of level. `"raw"` is $n_t$, which follows within a few half-lives. `"normal"` is
        $n_t$ where it is within the limit, which follows no change of level beyond it.

    Example:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.per_leaf(), jaxclip.thresholds.ema(2.0, decay=0.99))
    """
    ratio, decay = checked("ratio", ratio), checked("decay", decay, at_most=1)
    choice("start", start, "mean", "smallest")
    choice("feed", feed, "clipped", "raw", "normal")

    def init(norm: Norm) -> Average:
        return Average(norm, jnp.zeros((), jnp.int32))

    def update(norm: Norm, state: Average, now: Now) -> tuple[Limit, Average]:
        mean, seen = state
        starting = (now.step < warmup) | (seen == 0)
        limit = jnp.where(starting, jnp.inf, ratio * mean)
        if start == "mean":
            started = mean + (norm - mean) / (seen + 1).astype(norm.dtype)
        else:
            started = jnp.where(seen == 0, norm, jnp.minimum(mean, norm))
        learned = decay * mean + (1 - decay) * fed(feed, norm, limit, mean)
        return limit, Average(jnp.where(starting, started, learned), seen + 1)

    return Threshold(init, update)


class Moments(NamedTuple):
    """The state of `zscore`: mean and variance, and the number of norms that they have taken in."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    seen: Int[Array, ""]


def zscore(
    z: Number = 2.5,
    *,
    decay: Number = 0.97,
    warmup: int | Array = 25,
    rule: Literal["adaptive", "mean", "cap"] = "adaptive",
    factor: Number = 1.0,
    feed: Feed = "clipped",
) -> Threshold:
    r"""A limit for norms that lie too many standard deviations above their moving average.

    $$\zeta_t = \frac{n_t - \mu}{\sigma + \epsilon}, \qquad
    \tau_t = \mu + \frac{z^2}{\zeta_t}\,\sigma \text{ where } \zeta_t > z$$

    $$\mu' = \beta\mu + (1 - \beta)x_t, \qquad
    \sigma'^2 = \beta\sigma^2 + (1 - \beta)(x_t - \mu')^2, \qquad \epsilon = 10^{-6}$$

    Args:
      z: the number of standard deviations.
      decay: $\beta$, from 0 to 1.
      warmup: the number of finite norms whose mean and variance are the first $\mu$ and
        $\sigma^2$; until then there is no limit.
      rule: `"adaptive"` is the one above; `"mean"` has $\tau = \mu$, and `"cap"` has
        $\tau = \mu + z\sigma$.
      factor: what the adaptive limit is multiplied by.
      feed: $x_t$. `"clipped"` is $\min(n_t, \tau_t)$ and makes $\sigma$ collapse: the method then
        never follows a change of level. `"raw"` is $n_t$, which does. `"normal"` leaves the moments
        as they are where the norm is beyond the limit.

    Example:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), jaxclip.thresholds.zscore(3.0, feed="raw"))

    Source:
      Kumar et al. 2025 (ZClip), arXiv 2504.02507.
    """
    z, decay = checked("z", z), checked("decay", decay, at_most=1)
    factor = checked("factor", factor)
    choice("rule", rule, "adaptive", "mean", "cap")
    choice("feed", feed, "clipped", "raw", "normal")

    def init(norm: Norm) -> Moments:
        return Moments(norm, norm, jnp.zeros((), jnp.int32))

    def update(norm: Norm, state: Moments, now: Now) -> tuple[Limit, Moments]:
        mean, variance, seen = state
        deviation = jnp.sqrt(variance)
        starting = seen < warmup
        score = (norm - mean) / (deviation + 1e-6)
        cap = mean + z * deviation
        spike = (norm > cap if rule == "cap" else score > z) & ~starting
        limit = {
            "adaptive": (mean + z**2 / jnp.where(spike, score, 1) * deviation) * factor,
            "mean": mean,
            "cap": cap,
        }[rule]
        # What is no spike has the limit that it stayed below.
        limit = jnp.where(spike, limit, jnp.where(starting, jnp.inf, jnp.maximum(cap, norm)))

        value = norm if feed == "raw" else jnp.where(spike, limit, norm)
        # Welford's mean and variance while starting, moving ones then.
        weight = jnp.where(starting, 1 / (seen + 1).astype(norm.dtype), 1 - decay)
        moved = mean + weight * (value - mean)
        squared = jnp.where(starting, (value - mean) * (value - moved), (value - moved) ** 2)
        learned = Moments(moved, variance + weight * (squared - variance), seen + 1)
        if feed == "normal":
            learned = Moments(
                *[jnp.where(spike, a, b) for a, b in zip(state, learned, strict=True)]
            )
        return limit, learned

    return Threshold(init, update)


class Previous(NamedTuple):
    """The state of `previous`: the last norm, and the number of norms so far."""

    norm: Float[Array, ""]
    seen: Int[Array, ""]


def previous(growth: Number, *, feed: Literal["clipped", "raw"] = "clipped") -> Threshold:
    r"""A limit in proportion to the block's own norm at the step before.

    $$\tau_t = \gamma\,(x_{t-1} + 10^{-8})$$

    Args:
      growth: $\gamma$. The first norm has no limit.
      feed: $x_t$. `"clipped"` is $\min(n_t, \tau_t)$: a norm that was zero once takes thousands of
        steps to come back. `"raw"` is $n_t$.

    Example:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.per_leaf(), jaxclip.thresholds.previous(1.01))

    Source:
      Chen et al. 2024 (Fira), arXiv 2410.01623; Zhu et al. 2024 (APOLLO), arXiv 2412.05270.
    """
    growth = checked("growth", growth)
    choice("feed", feed, "clipped", "raw")

    def init(norm: Norm) -> Previous:
        return Previous(norm, jnp.zeros((), jnp.int32))

    def update(norm: Norm, state: Previous, now: Now) -> tuple[Limit, Previous]:
        limit = jnp.where(state.seen == 0, jnp.inf, growth * (state.norm + 1e-8))
        return limit, Previous(fed(feed, norm, limit, norm), state.seen + 1)

    return Threshold(init, update)


class SecondMoment(NamedTuple):
    """The state of `second_moment`: the average of the squares, and the number of norms so far."""

    mean: Float[Array, ""]
    seen: Int[Array, ""]


def second_moment(
    ratio: Number,
    *,
    decay: Number = 0.999,
    warmup: int | Array = 20,
    feed: Literal["clipped", "raw"] = "clipped",
) -> Threshold:
    r"""A limit in proportion to the root of the moving average of the squared norms.

    $$\tau_t = \sqrt{\theta\,v_{t-1}}, \qquad
    v_t = \beta v_{t-1} + (1 - \beta)\,x_t^2, \qquad v_0 = 0$$

    Args:
      ratio: $\theta$.
      decay: $\beta$, from 0 to 1.
      warmup: there is no limit at the first steps, this one not included.
      feed: $x_t$. `"clipped"` is $\min(n_t, \tau_t)$: what was zero all through the warm-up stays
        zero for ever. `"raw"` is $n_t$.

    Example:
      >>> import jaxclip
      >>> tx = jaxclip.clip(
      ...     jaxclip.measures.per_entry(), jaxclip.thresholds.second_moment(5000.0))

    Source:
      Huang et al. 2025 (SPAM), arXiv 2501.06842.
    """
    ratio, decay = checked("ratio", ratio), checked("decay", decay, at_most=1)
    choice("feed", feed, "clipped", "raw")

    def init(norm: Norm) -> SecondMoment:
        return SecondMoment(norm, jnp.zeros((), jnp.int32))

    def update(norm: Norm, state: SecondMoment, now: Now) -> tuple[Limit, SecondMoment]:
        seen = state.seen + 1
        limit = jnp.where(seen < warmup, jnp.inf, jnp.sqrt(ratio * state.mean))
        value = fed(feed, norm, limit, norm)
        return limit, SecondMoment(decay * state.mean + (1 - decay) * value**2, seen)

    return Threshold(init, update)
