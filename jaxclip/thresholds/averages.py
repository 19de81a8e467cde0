"""Thresholds that remember an average of the norms."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .base import (
    Feed,
    Limit,
    Norm,
    Now,
    Number,
    Threshold,
    awake,
    check_choice,
    check_number,
    check_warmup,
    intake,
    numbers,
    times,
)

_OUTLIER = 1000.0
ALL_ZERO = "which makes zeros of all gradients but the first"


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
      ratio: $\lambda > 0$.
      decay: $\beta$, from 0 to 1; the half-life is $\ln 2 / (1 - \beta)$ steps.
      warmup: the number of steps without a limit. There is none either before a first positive
        norm.
      start: what the norms of the warm-up (or else the first one) leave as $\gamma$: their mean, or
        the smallest of them, not counting any that is a thousand times smaller than its neighbors.
      feed: $x_t$. `"clipped"` is $\min(n_t, \tau_t)$: the limit rises by
        $1 + (1-\beta)(\lambda-1)$ a step at most, and with a small $\lambda$ hardly follows a
        change of level. `"raw"` is $n_t$, which follows within a few half-lives.
        `"within_limit"` is $n_t$ where it is within the limit, which follows no change of level
        beyond it.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.per_leaf(), jaxclip.thresholds.ema(2.0, decay=0.99))
    """
    ratio = check_number("ratio", ratio, positive=ALL_ZERO)
    decay = check_number("decay", decay, at_most=1)
    check_warmup(warmup)
    check_choice("start", start, "mean", "smallest")
    check_choice("feed", feed, "clipped", "raw", "within_limit")

    def init(norm: Norm) -> Average:
        return Average(norm, jnp.zeros((), jnp.int32))

    def update(norm: Norm, state: Average, now: Now) -> tuple[Limit, Average]:
        mean, seen = state
        lam, beta = numbers(norm, ratio, decay)
        empty = mean == 0
        starting = (now.step < warmup) | empty
        limit = jnp.where(starting, jnp.inf, lam * mean)
        if start == "mean":
            started = mean + (norm - mean) / (seen + 1).astype(norm.dtype)
        else:
            # Beside a norm a thousand times smaller, the larger one is the rule and the smaller an
            # exception: an array without a gradient, or what the clip of a spike left.
            started = jnp.where(_OUTLIER * norm < mean, mean, jnp.minimum(mean, norm))
            started = jnp.where(norm > _OUTLIER * mean, norm, started)
        started = jnp.where(empty, norm, started)
        learned = beta * mean + (1 - beta) * intake(feed, norm, limit, mean)
        mean = awake(jnp.where(starting, started, learned), norm)
        return limit, Average(mean, jnp.where(mean > 0, seen + 1, 0))

    return Threshold(init, update)


class Moments(NamedTuple):
    """The state of `zscore`: mean, standard deviation, and the number of norms that they are of.

    The variance itself would leave the range of float32 for norms beyond 1.8e19.
    """

    mean: Float[Array, ""]
    deviation: Float[Array, ""]
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
      warmup: the number of norms whose mean and variance are the first $\mu$ and $\sigma^2$; until
        then, and until a first positive norm, there is no limit.
      rule: `"adaptive"` is the one above; `"mean"` has $\tau = \mu$, and `"cap"` has
        $\tau = \mu + z\sigma$.
      factor: what the adaptive limit is multiplied by.
      feed: $x_t$. `"clipped"` is $\min(n_t, \tau_t)$ and makes $\sigma$ collapse: the method then
        never follows a change of level. `"raw"` is $n_t$, which does. `"within_limit"` leaves the
        moments as they are where the norm is beyond the limit.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), jaxclip.thresholds.zscore(3.0, feed="raw"))

    Source:
      Kumar et al. 2025 (ZClip), arXiv 2504.02507.
    """
    z, decay = check_number("z", z), check_number("decay", decay, at_most=1)
    check_warmup(warmup)
    factor = check_number("factor", factor)
    check_choice("rule", rule, "adaptive", "mean", "cap")
    check_choice("feed", feed, "clipped", "raw", "within_limit")

    def init(norm: Norm) -> Moments:
        return Moments(norm, norm, jnp.zeros((), jnp.int32))

    def update(norm: Norm, state: Moments, now: Now) -> tuple[Limit, Moments]:
        mean, deviation, seen = state
        k, beta, scale = numbers(norm, z, decay, factor)
        warming_up = seen < warmup
        starting = warming_up | (mean == 0)
        score = (norm - mean) / (deviation + 1e-6)
        cap = mean + times(deviation, k)
        spike = (norm > cap if rule == "cap" else score > k) & ~starting
        limit = {
            "adaptive": (mean + k * (k / jnp.where(spike, score, 1)) * deviation) * scale,
            "mean": mean,
            "cap": cap,
        }[rule]
        # A step without a spike reports the limit that it stayed below.
        limit = jnp.where(spike, limit, jnp.where(starting, jnp.inf, jnp.maximum(cap, norm)))

        value = norm if feed == "raw" else jnp.where(spike, limit, norm)
        value = jnp.minimum(value, jnp.finfo(norm.dtype).max)
        # The mean and the variance of all norms while warming up, moving ones then.
        weight = jnp.where(mean == 0, 1, 1 - beta)
        weight = jnp.where(warming_up, 1 / (seen + 1).astype(norm.dtype), weight)
        moved = mean + weight * (value - mean)
        distance = jnp.where(
            starting, jnp.sqrt(1 - weight) * jnp.abs(value - mean), jnp.abs(value - moved)
        )
        spread = jnp.hypot(jnp.sqrt(1 - weight) * deviation, jnp.sqrt(weight) * distance)
        learned = Moments(awake(moved, norm), spread, seen + 1)
        if feed == "within_limit":
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
      growth: $\gamma$. The first positive norm has no limit.
      feed: $x_t$. `"clipped"` is $\min(n_t, \tau_t)$: after a norm that was tiny once, the limit
        takes thousands of steps to come back. `"raw"` is $n_t$.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.per_leaf(), jaxclip.thresholds.previous(1.01))

    Source:
      Chen et al. 2024 (Fira), arXiv 2410.01623; Zhu et al. 2024 (APOLLO), arXiv 2412.05270.
    """
    growth = check_number("growth", growth)
    check_choice("feed", feed, "clipped", "raw")

    def init(norm: Norm) -> Previous:
        return Previous(norm, jnp.zeros((), jnp.int32))

    def update(norm: Norm, state: Previous, now: Now) -> tuple[Limit, Previous]:
        [gamma] = numbers(norm, growth)
        limit = jnp.where(state.seen == 0, jnp.inf, gamma * (state.norm + 1e-8))
        started = (state.seen > 0) | (norm > 0)
        return limit, Previous(
            intake(feed, norm, limit, norm), jnp.where(started, state.seen + 1, 0)
        )

    return Threshold(init, update)


class SecondMoment(NamedTuple):
    """The state of `second_moment`: the root of the average of the squares.

    The average itself would leave the range of float32 for norms beyond 1.8e19 or below 1e-19.
    """

    root: Float[Array, ""]


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
      ratio: $\theta > 0$.
      decay: $\beta$, from 0 to 1.
      warmup: the first step that has a limit. There is none either while $v$ is 0.
      feed: $x_t$. `"clipped"` is $\min(n_t, \tau_t)$, `"raw"` is $n_t$.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(
      ...     jaxclip.measures.per_entry(), jaxclip.thresholds.second_moment(5000.0))

    Source:
      Huang et al. 2025 (SPAM), arXiv 2501.06842, which has a limit of 0 where $v$ is 0.
    """
    ratio = check_number("ratio", ratio, positive=ALL_ZERO)
    decay = check_number("decay", decay, at_most=1)
    check_warmup(warmup)
    check_choice("feed", feed, "clipped", "raw")

    def init(norm: Norm) -> SecondMoment:
        return SecondMoment(norm)

    def update(norm: Norm, state: SecondMoment, now: Now) -> tuple[Limit, SecondMoment]:
        theta, beta = numbers(norm, ratio, decay)
        starting = (now.step + 1 < warmup) | (state.root == 0)
        limit = jnp.where(starting, jnp.inf, jnp.sqrt(theta) * state.root)
        value = intake(feed, norm, limit, norm)
        root = jnp.hypot(jnp.sqrt(beta) * state.root, jnp.sqrt(1 - beta) * value)
        return limit, SecondMoment(awake(jnp.minimum(root, jnp.finfo(root.dtype).max), norm))

    return Threshold(init, update)
