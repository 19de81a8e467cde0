"""Thresholds that remember the last norms themselves."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..norms import ratio
from .base import (
    Limit,
    Norm,
    Now,
    Number,
    Threshold,
    check_number,
    check_quantile,
    check_whole_number,
    numbers,
)


class Window(NamedTuple):
    """The last values, in a ring, and how many there have ever been."""

    values: Float[Array, " window"]
    seen: Int[Array, ""]


def empty(window: int, dtype: jnp.dtype) -> Window:
    """A window without values."""
    return Window(jnp.zeros(window, dtype), jnp.zeros((), jnp.int32))


def push(window: Window, value: Norm) -> Window:
    """Puts one more value in, in place of the oldest."""
    here = jnp.arange(window.values.size, dtype=jnp.int32) == window.seen % window.values.size
    return Window(jnp.where(here, value, window.values), window.seen + 1)


def mean_and_deviation(window: Window, ddof: int = 0) -> tuple[Norm, Norm]:
    r"""Returns mean and standard deviation of the values; 0 and 0 of none.

    $$\mu = a + 2d\,\overline{x}, \quad \sigma = 2d \sqrt{\overline{(x - \overline{x})^2}}, \qquad
    x = \frac{v - a}{2d}, \quad a = \min v, \quad 2d = \max v - \min v$$

    so that nothing leaves the range of the dtype, and equal values have exactly themselves as mean.
    """
    held = jnp.arange(window.values.size, dtype=jnp.int32) < window.seen
    values = jnp.where(held, window.values, window.values[0])
    number = jnp.minimum(window.seen, values.size).astype(values.dtype)
    low = jnp.min(values)
    d = jnp.max(values) / 2 - low / 2
    x = ratio(values / 2 - low / 2, jnp.sqrt(jnp.where(d > 0, d, 1)))
    mean = jnp.sum(jnp.where(held, x, 0)) / jnp.maximum(number, 1)
    squares = jnp.sum(jnp.where(held, jnp.square(x - mean), 0))
    deviation = jnp.sqrt(squares / jnp.maximum(number - ddof, 1))
    return low + d * mean + d * mean, jnp.minimum(2 * (d * deviation), jnp.finfo(d.dtype).max)


def history(sigma: Number = 3.0, *, window: int = 128) -> Threshold:
    r"""A limit of some standard deviations above the mean of the last norms.

    $$\tau_t = \mu + k \max(\sigma, 10^{-6})$$

    of the last $N$ norms before this one, as they were before the clip. There is no limit before
    there are $\max(2, N/2)$ of them.

    Args:
      sigma: $k$.
      window: $N$; the state holds as many numbers for every block.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), jaxclip.thresholds.history(3.0))

    Source:
      `clip_update_by_historical_norm` of Levanter.
    """
    sigma, window = check_number("sigma", sigma), check_whole_number("window", window, 2)

    def init(norm: Norm) -> Window:
        return empty(window, norm.dtype)

    def update(norm: Norm, state: Window, now: Now) -> tuple[Limit, Window]:
        mean, deviation = mean_and_deviation(state)
        [k] = numbers(norm, sigma)
        limit = mean + k * jnp.maximum(deviation, 1e-6)
        enough = state.seen >= max(2, window // 2)
        return jnp.where(enough, limit, jnp.inf), push(state, norm)

    return Threshold(init, update)


class SortedWindow(NamedTuple):
    """A window, and the same values in order, with `inf` for those that are still to come."""

    window: Window
    ordered: Float[Array, " window"]


def quantile(quantile: Number = 0.1, *, window: int = 1024) -> Threshold:
    r"""A quantile of the last norms, this one included.

    $$\tau_t = Q_q(n_{t-N+1}, \dots, n_t)$$

    with linear interpolation, as `numpy.quantile`; over the norms seen so far, until there are $N$.

    Args:
      quantile: $q$, from 0 to 1.
      window: $N$; the state holds twice as many numbers for every block. They are kept in order, so
        that a step costs a shift of the window and not a sort. `geometric_quantile` tracks a
        quantile with a single number.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), jaxclip.thresholds.quantile(0.1))

    Source:
      Seetharaman et al. 2020 (AutoClip), arXiv 2007.14469, over a window.
    """
    share = check_quantile(quantile)
    window = check_whole_number("window", window, 1)

    def init(norm: Norm) -> SortedWindow:
        return SortedWindow(empty(window, norm.dtype), jnp.full(window, jnp.inf, norm.dtype))

    def update(norm: Norm, state: SortedWindow, now: Now) -> tuple[Limit, SortedWindow]:
        ring, ordered = state
        oldest = ring.values[ring.seen % window]
        leaving = jnp.where(ring.seen < window, jnp.inf, oldest)
        ordered = _replaced(ordered, leaving, norm)
        ring = push(ring, norm)
        last = (jnp.minimum(ring.seen, window) - 1).astype(norm.dtype)
        [q] = numbers(norm, share)
        position = q * last
        below = jnp.floor(position).astype(jnp.int32)
        above = jnp.ceil(position).astype(jnp.int32)
        low, high = ordered[below], ordered[above]
        return low + (high - low) * (position - jnp.floor(position)), SortedWindow(ring, ordered)

    return Threshold(init, update)


def _replaced(
    ordered: Float[Array, " window"], leaving: Norm, coming: Norm
) -> Float[Array, " window"]:
    """Takes one value out of an ordered array and puts another in, in order."""
    index = jnp.arange(ordered.size, dtype=jnp.int32)
    end = jnp.full(1, jnp.inf, ordered.dtype)
    without = jnp.where(
        index < jnp.sum(ordered < leaving, dtype=jnp.int32),
        ordered,
        jnp.concatenate([ordered[1:], end]),
    )
    place = jnp.sum(without < coming, dtype=jnp.int32)
    after = jnp.concatenate([end, without[:-1]])
    return jnp.where(index < place, without, jnp.where(index == place, coming, after))
