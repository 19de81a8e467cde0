"""What to clip by, from the norms that a run's own gradients had."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from .methods.average import drop_spikes, zclip
from .methods.fixed import clip_by_global_norm, smooth_clip_by_global_norm
from .methods.quantile import autoclip, clip_by_history, clip_by_quantile
from .metrics import metrics

PERCENTILES = (1, 10, 50, 90, 99, 100)
FEW = 100  # norms: with less, a percentile is a matter of luck
DRIFT = 2.0  # of the median between the first fifth and the last: more is a level shift


class Suggestion(NamedTuple):
    """A method for these norms.

    Attributes:
      code: the line to paste.
      clipped: the share of the steps that it would have clipped, from 0 to 1.
      reason: why its numbers are what they are.
    """

    code: str
    clipped: float
    reason: str


class Advice(NamedTuple):
    """What norms say about how to clip; printed, it is a page.

    Attributes:
      percentiles: of the finite norms, by per cent.
      drift: the median of the last fifth of the norms, divided by that of the first fifth.
      nonfinite: how many norms are nan or infinite.
      steps: how many norms there are.
      suggestions: the methods, each with its line of code.
      warnings: what to know before any of them is taken.
    """

    percentiles: dict[int, float]
    drift: float
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
            f"drift: the last fifth is {self.drift:.2g} times the first",
            "",
            f"{'jaxclip.':<{width}}  clipped  why",
            *rows,
            *(f"Note: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def advise(norms: Float[np.ndarray, " steps"] | Sequence[float]) -> Advice:
    r"""What to clip by, from the global norms of a run's own gradients.

    A constant limit is suggested at \(q_{90}\), the 90th percentile of the norms, which clips one
    step in ten and leaves the median step alone. Methods that adapt are suggested at their
    published defaults, or at the same quantile. The share that each would have clipped is found by
    running the method itself over the norms, as if every gradient had been one number; how a clip
    would have changed the norms that follow is not known.

    Args:
      norms: the norms before clipping, in the order of the steps: `ClipMetrics.norm` of a run with
        `clip_by_global_norm(jnp.inf)`.

    Returns:
      `Advice`: print it.

    Raises:
      TypeError: the norms are not numbers.
      ValueError: there are none, or none that is finite, or one is negative.

    Example:
      >>> advice = advise([1.0, 2.0, 1.5, 1.0, 9.0])
      >>> print(advice.suggestions[0].code, advice.suggestions[0].clipped)
      clip_by_global_norm(6.2) 0.2

    Source:
      Seetharaman et al. 2020 choose limits by percentiles of the norms seen:
      https://arxiv.org/abs/2007.14469.
    """
    norms = checked(norms)
    finite = norms[np.isfinite(norms)]
    percentiles = {q: float(np.percentile(finite, q)) for q in PERCENTILES}
    fifth = max(1, len(finite) // 5)
    first = float(np.median(finite[:fifth]))
    drift = float(np.median(finite[-fifth:])) / first if first > 0 else math.inf
    nonfinite = len(norms) - len(finite)
    limit, largest = (float(f"{percentiles[q]:.2g}") for q in (90, 99))
    start = float(f"{first:.2g}")
    candidates = {
        f"clip_by_global_norm({limit:g})": (clip_by_global_norm(limit), "90th percentile"),
        f"smooth_clip_by_global_norm({limit:g})": (
            smooth_clip_by_global_norm(limit),
            "90th percentile; it shrinks every step a little",
        ),
        f"clip_by_quantile(0.9, initial={start:g})": (
            clip_by_quantile(0.9, initial=start),
            "follows the 90th percentile with one number of state",
        ),
        "autoclip(90.0)": (autoclip(90.0), "follows the 90th percentile of the last 1024"),
        f"zclip(max_norm={largest:g})": (
            zclip(max_norm=largest),
            "spikes; cap at the 99th percentile",
        ),
        "clip_by_history()": (clip_by_history(), "beyond mean + 3 sigma of the last 128"),
        "drop_spikes()": (drop_spikes(), "steps of more than 4 times the mean are left out"),
    }
    suggestions = [
        Suggestion(code, share_clipped(method, norms), reason)
        for code, (method, reason) in candidates.items()
    ]
    return Advice(
        percentiles,
        drift,
        nonfinite,
        len(norms),
        suggestions,
        warnings(len(norms), drift, nonfinite),
    )


def checked(norms: Float[np.ndarray, " steps"] | Sequence[float]) -> np.ndarray:
    """Returns the norms as an array, or raises."""
    array = np.asarray(norms)
    if array.dtype.kind not in "fiu" and array.dtype != jnp.bfloat16:
        raise TypeError(f"norms are {array.dtype}: give the norms of a run's gradients, as numbers")
    array = np.ravel(array).astype(np.float64)
    if not np.any(np.isfinite(array)):
        raise ValueError(f"there are {len(array)} norms and none is finite: give those of a run")
    if np.any(array < 0):
        raise ValueError(f"the smallest norm is {array.min():g}: norms are not negative")
    return array


def share_clipped(method: optax.GradientTransformation, norms: np.ndarray) -> float:
    """Returns the share of the steps in which a method clips gradients of these norms."""

    def step(state: optax.OptState, norm: jax.Array) -> tuple[optax.OptState, None]:
        return method.update(norm, state)[1], None

    norms32 = jnp.asarray(norms, jnp.float32)
    state, _ = jax.lax.scan(step, method.init(norms32[0]), norms32)
    return float(metrics(state)["clip"].clip_rate)


def warnings(count: int, drift: float, nonfinite: int) -> list[str]:
    """Returns what to know before a suggestion is taken."""
    told = []
    if count < FEW:
        told.append(f"{count} norms are few; from {FEW} on, percentiles begin to mean something")
    if not 1 / DRIFT <= drift <= DRIFT:
        told.append("the norms drift; a limit that follows them, or a schedule, fits better")
    if nonfinite:
        told.append(f"{nonfinite} norms are not finite; wrap the optimizer in skip_nonfinite")
    return told
