"""Suggests methods and limits from the gradient norms of a run."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from . import wrappers
from .methods import average, fixed, quantile
from .reports import metrics

PERCENTILES = (1, 10, 50, 90, 99, 100)
FEW = 100  # norms: with less, a percentile is a matter of luck
DRIFT = 2.0  # of the median between the first fifth and the last: more is a level shift
PIECES = 40  # of a run: the trend is that of their medians, which spikes do not move


class Suggestion(NamedTuple):
    """A method for these norms.

    Attributes:
      code: the line to paste; where it names `optimizer`, the whole optimizer is meant.
      clipped: the share of the steps in which it would have clipped something, from 0 to 1.
      reason: where its numbers come from.
    """

    code: str
    clipped: float
    reason: str


class Advice(NamedTuple):
    """Statistics of the norms, and the methods that they suggest; print it to read it.

    Attributes:
      percentiles: of the finite global norms, by per cent; 100 is the maximum.
      drift: the median of the last fifth of them, divided by that of the first fifth.
      trend: by how many powers of ten they rise in 1,000 steps.
      nonfinite: how many norms are nan or infinite.
      steps: how many norms there are.
      suggestions: the methods, each with its line of code.
      warnings: what to know before any of them is taken.
    """

    percentiles: dict[int, float]
    drift: float
    trend: float
    nonfinite: int
    steps: int
    suggestions: Sequence[Suggestion]
    warnings: Sequence[str]

    def __str__(self) -> str:
        percentiles = "   ".join(
            f"{'max' if q == 100 else f'{q} %'} {value:.3g}"
            for q, value in self.percentiles.items()
        )
        width = max(len(one.code) for one in self.suggestions)
        rows = [
            f"{one.code:<{width}}  {100 * one.clipped:5.1f} %  {one.reason}"
            for one in self.suggestions
        ]
        lines = [
            f"{self.steps} norms, {self.nonfinite} of them not finite",
            f"percentiles: {percentiles}",
            f"drift: the last fifth is {self.drift:.2g} times the first; "
            f"{self.trend:+.2g} decades in 1,000 steps",
            "",
            f"{'':<{width}}  clipped  why",
            *rows,
            *(f"Note: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def advise(
    norms: Float[np.ndarray, " steps"] | Float[np.ndarray, "steps blocks"] | Sequence[float],
) -> Advice:
    r"""Suggests methods and limits from the gradient norms of a run.

    $$\tau = q_{90}, \qquad \text{drift} = \frac{\mathrm{median}(n_{4T/5}, \dots, n_T)}
    {\mathrm{median}(n_1, \dots, n_{T/5})}$$

    A constant limit is suggested at $q_{90}$, the 90th percentile of the norms, which clips one
    step in ten and leaves the usual step alone; `autoclip` and `clip_by_quantile` are to follow the
    same percentile, and the methods that clip spikes are at their published defaults. Absolute
    caps, such as the limit of `zclip`, are set to the 99th percentile, and those of a warm-up to
    the 90th, since their defaults of 1 suit norms of that size alone. The ratio of
    `clip_by_norm_ratio` is $q_{90} / q_{50}$. Numbers are rounded to two digits.

    The share that each would have clipped is measured by running the method over gradients with one
    number for every block. How a clip would have changed the norms that follow is unknown. The
    trend is the median of the slopes between the medians of 40 pieces of the run (Theil and Sen),
    so that spikes do not count.

    There are warnings for less than 100 norms, a drift beyond a factor of 2 (a constant limit is a
    poor choice then), norms that are not finite, a run that diverged, and a 90th percentile of 0.

    Args:
      norms: the norms before clipping, in the order of the steps: `ClipMetrics.norm` of a run with
        `clip_by_global_norm(jnp.inf)`. With a second axis they are 2-norms of the blocks that the
        gradient consists of, such as its arrays; methods that clip every array are suggested too.

    Returns:
      `Advice`: print it.

    Raises:
      TypeError: the norms are not numbers.
      ValueError: there is no norm, no finite norm, a negative norm, or there are more than
        two axes.

    Examples:
      >>> advice = advise([1.0, 2.0, 1.5, 1.0, 9.0])
      >>> print(advice.suggestions[0].code, advice.suggestions[0].clipped)
      jaxclip.clip_by_global_norm(6.2) 0.2

    Source:
      Seetharaman et al. 2020 choose limits by percentiles of the norms seen:
      https://arxiv.org/abs/2007.14469.
    """
    blocks = check_norms(norms)
    total = np.array([math.hypot(*row) for row in blocks])
    finite = total[np.isfinite(total)]
    percentiles = {q: float(np.percentile(finite, q)) for q in PERCENTILES}
    candidates = suggested(blocks[np.isfinite(total)], percentiles)
    shares = shares_clipped([method for _, method, _ in candidates], blocks)
    drift, nonfinite = drift_of(finite), len(total) - len(finite)
    return Advice(
        percentiles,
        drift,
        trend_of(total),
        nonfinite,
        len(total),
        [
            Suggestion(code, share, reason)
            for (code, _, reason), share in zip(candidates, shares, strict=True)
        ],
        warnings(total, drift, percentiles[90]),
    )


def check_norms(norms: Any) -> Float[np.ndarray, "steps blocks"]:
    """Returns the norms of all blocks as an array, or raises."""
    array = np.asarray(norms)
    if array.dtype.kind not in "fiu" and array.dtype != jnp.bfloat16 and array.size:
        raise TypeError(
            f"norms are {array.dtype}, but they are compared with limits: give the norms of a "
            "run's gradients, as numbers"
        )
    if array.ndim > 2:
        raise ValueError(
            f"norms have the shape {array.shape}, but they are a series: give [steps], or "
            "[steps, blocks]; np.ravel joins epochs"
        )
    array = array.astype(np.float64)
    if array.ndim < 2:
        array = array.reshape(-1, 1)
    if not array.size or not np.any(np.all(np.isfinite(array), 1)):
        raise ValueError(
            f"there are {len(array)} norms and none is finite, so that they have no percentiles: "
            "give those of a run that trains, by a smaller learning rate if need be"
        )
    if np.any(array < 0):
        raise ValueError(
            f"the smallest norm is {np.nanmin(array):g}, but norms are not negative: give norms, "
            "not losses or logarithms"
        )
    return array


def drift_of(norms: Float[np.ndarray, " steps"]) -> float:
    """Returns the median of the last fifth of the norms, divided by that of the first."""
    fifth = max(1, len(norms) // 5)
    first, last = float(np.median(norms[:fifth])), float(np.median(norms[-fifth:]))
    if first == last:
        return 1.0
    return last / first if first > 0 else math.inf


def trend_of(norms: Float[np.ndarray, " steps"]) -> float:
    """Returns the powers of ten that the norms rise by in 1,000 steps, whatever the spikes."""
    [steps] = np.nonzero(np.isfinite(norms) & (norms > 0))
    pieces = [piece for piece in np.array_split(steps, PIECES) if len(piece)]
    points = [(np.mean(piece), np.median(np.log10(norms[piece]))) for piece in pieces]
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in itertools.combinations(points, 2)]
    return 1000 * float(np.median(slopes)) if slopes else 0.0


def suggested(
    blocks: Float[np.ndarray, "steps blocks"], percentiles: Mapping[int, float]
) -> list[tuple[str, optax.GradientTransformation, str]]:
    """Returns the methods that suit the finite norms: code, method, and the reason."""
    limit, largest = rounded(percentiles[90]), rounded(percentiles[99])
    # From zero a quantile that is tracked by factors never rises.
    start = limit or 1.0
    found = [
        called(fixed.clip_by_global_norm, limit, why="90th percentile"),
        called(
            fixed.smooth_clip_by_global_norm,
            limit,
            why="90th percentile; shrinks every step, the usual one little",
        ),
        called(
            quantile.clip_by_quantile,
            0.9,
            initial=start,
            why="follows the 90th percentile, by one number of state",
        ),
        called(quantile.autoclip, 90.0, why="follows the 90th percentile of the last 1024"),
        called(average.zclip, limit=largest, why="spikes; the cap is the 99th percentile"),
        called(quantile.clip_by_history, why="beyond mean + 3 sigma of the last 128"),
        called(average.drop_spikes, why="more than 4 times the mean: a gradient of zero"),
    ]
    middle, high = np.percentile(blocks, (50, 90), axis=0)
    if np.any(middle > 0):
        ratio = max(1.1, rounded(float(np.median(high[middle > 0] / middle[middle > 0]))))
        found.append(
            called(average.clip_by_norm_ratio, ratio, why="90th percentile by the median, an array")
        )
    if blocks.shape[1] > 1:
        found.append(
            called(average.adagc, warmup_limit=limit, why="a little above each array's own average")
        )
    skip = wrappers.skip_on_spike(optax.identity())
    found.append(
        ("jaxclip.skip_on_spike(optimizer)", skip, "beyond mean + 6 sigma: the step is skipped")
    )
    return found


def called(
    method: Any, *arguments: float, why: str, **named: float
) -> tuple[str, optax.GradientTransformation, str]:
    """Calls a method; returns how the call is written, the method, and the reason."""
    texts = [f"{value:g}" for value in arguments] + [f"{k}={v:g}" for k, v in named.items()]
    return f"jaxclip.{method.__name__}({', '.join(texts)})", method(*arguments, **named), why


def rounded(number: float) -> float:
    """Returns a number as one would type it, with two digits."""
    return float(f"{number:.2g}")


def shares_clipped(
    methods: Sequence[optax.GradientTransformation], blocks: Float[np.ndarray, "steps blocks"]
) -> list[float]:
    """Returns the share of the steps in which each method clips gradients of these norms."""

    def step(states: list, row: list[jax.Array]) -> tuple[list, None]:
        return [one.update(row, state)[1] for one, state in zip(methods, states, strict=True)], None

    # In one scan, so that one compilation does for all.
    columns = [jnp.asarray(column, jnp.float32) for column in blocks.T]
    first = [column[0] for column in columns]
    states, _ = jax.lax.scan(step, [one.init(first) for one in methods], columns)
    clips = [next(iter(metrics(state).values())) for state in states]
    return [round(float(clip.clip_rate) * len(blocks)) / len(blocks) for clip in clips]


def warnings(norms: Float[np.ndarray, " steps"], drift: float, high: float) -> list[str]:
    """Returns the caveats of all suggestions; `high` is the 90th percentile."""
    notes = []
    finite = np.isfinite(norms)
    last = int(np.max(np.nonzero(finite))) + 1
    if len(norms) < FEW:
        notes.append(
            f"{len(norms)} norms are few; from {FEW} on, percentiles begin to mean something"
        )
    if len(norms) - last >= max(2, len(norms) // 20):
        notes.append(
            f"the run diverged at step {last}, and the norms before it may have exploded already; "
            "retry with fewer steps or a smaller learning rate"
        )
    elif not np.all(finite):
        notes.append(
            f"{np.sum(~finite)} norms are not finite; wrap the optimizer in skip_nonfinite"
        )
    if not 1 / DRIFT <= drift <= DRIFT:
        notes.append(
            "the norms drift, and a constant limit that suits the beginning does not suit the end: "
            "take one that follows them (autoclip, clip_by_quantile), or a schedule"
        )
    if high == 0:
        notes.append("nine norms in ten are 0: nothing is learned, which no limit can mend")
    return notes
