"""The metrics of a run as a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import files
from experiments.runs import Metrics


def draw(metrics: Metrics, title: str, path: Path) -> None:
    """Draws the loss, the norm against its limit, the clipped steps marked, and the score."""
    # Not pyplot, which keeps every figure alive and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    figure.suptitle(title, parse_math=False)
    loss, norm, score = figure.subplots(3, 1)
    steps = np.arange(len(metrics.loss))
    epochs = np.arange(1, len(metrics.score) + 1)

    loss.plot(steps, metrics.loss, color="tab:blue", alpha=0.25, linewidth=0.5)
    loss.plot(steps, smoothed(metrics.loss), color="tab:blue", label="mean of 100 steps")
    loss.set(ylabel="loss", xlabel="step")
    logarithmic(loss, metrics.loss)

    clipped = metrics.clipped > 0
    rate = f"clipped, {100 * np.mean(clipped):.1f} % of the steps"
    norm.plot(steps, metrics.norm, color="tab:gray", linewidth=0.5, label="norm before the clip")
    norm.scatter(steps[clipped], metrics.norm[clipped], s=2, color="tab:red", zorder=2, label=rate)
    norm.plot(steps, metrics.limit, color="black", linewidth=1, label="limit")
    norm.set(ylabel="norm", xlabel="step")
    logarithmic(norm, metrics.norm)

    score.plot(epochs, 100 * metrics.score, "o-", color="tab:green", label="on the test data")
    score.set(ylabel="accuracy, %", xlabel="epoch")
    score.locator_params(axis="x", integer=True)

    for axes, corner in ((loss, "upper right"), (norm, "lower left"), (score, "lower right")):
        axes.grid(alpha=0.3)
        axes.legend(loc=corner)  # to look for the best place takes as long as to draw all of it
    files.write(path, lambda file: figure.savefig(file, format="png", dpi=120))


def logarithmic(axes: Any, values: np.ndarray) -> None:
    """Makes the axis logarithmic where there is anything that it can show."""
    from matplotlib.ticker import LogFormatter

    if np.any(np.isfinite(values) & (values > 0)):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def smoothed(values: np.ndarray, window: int = 100) -> np.ndarray:
    """Returns the mean of the finite ones among each value and the `window - 1` before it."""
    finite = np.isfinite(values)
    counts = latest(finite.astype(float), window)
    sums = latest(np.where(finite, values, 0), window)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def latest(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the sum of each value and the `window - 1` before it."""
    sums = np.concatenate([np.zeros(window), np.cumsum(values)])
    return sums[window:] - sums[: len(values)]
