"""The content of figures: series of numbers, thinned for a page."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Mode = Literal["lines", "markers", "lines+markers"]
WINDOW = 100  # steps of a running mean
MOST = 2000  # points of a series that a page holds


class Series(NamedTuple):
    """A line or points of one name.

    Attributes:
        name: its name in the legend.
        x: numbers, or strings for categories.
        y: f64[n]; nan and inf are gaps.
        low: f64[n], the lower ends of the intervals, if there are any.
        high: f64[n], the upper ends.
        mode: whether points, or lines between them.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    mode: Mode = "lines+markers"


class Heat(NamedTuple):
    """A number over a plane, drawn below the series of a figure as a heat map.

    Attributes:
        x: f64[columns], their places.
        y: f64[rows], theirs.
        z: the numbers f64[columns] of every row.
    """

    x: np.ndarray
    y: np.ndarray
    z: Sequence[np.ndarray]


class Figure(NamedTuple):
    """The content of a figure; categories on the x axis are drawn as rows, the y axis across.

    Attributes:
        name: the name of its files.
        title: its heading.
        x: the label of the x axis, with its unit.
        y: the label of the y axis, with its unit.
        series: the series.
        log_x: whether the x axis is logarithmic.
        log_y: whether the y axis is.
        caption: the text below it.
        heat: a heat map below the series.
    """

    name: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    caption: str = ""
    heat: Heat | None = None

    @property
    def categories(self) -> bool:
        """Whether its x are categories."""
        return any(series.x.dtype.kind in "UO" for series in self.series)


def one_each(figure: Figure) -> bool:
    """Returns whether each series is one category by its own name, so that it needs no legend."""
    return all([str(x) for x in series.x] == [series.name] for series in figure.series)


def thin(series: Series, most: int = MOST) -> Series:
    """Returns a series of at most `most` points, the lowest and the highest of every stretch.

    Nothing that stands out is lost: of each of `most / 2` stretches of equal length both extremes
    stay. A stretch without a finite value stays a gap; shorter gaps close.
    """
    if len(series.y) <= most:
        return series
    kept = []
    for stretch in np.array_split(np.arange(len(series.y)), most // 2):
        finite = stretch[np.isfinite(series.y[stretch])]
        if len(finite):
            kept += {finite[series.y[finite].argmin()], finite[series.y[finite].argmax()]}
        else:
            kept.append(stretch[0])
    rows = np.sort(np.array(kept, int))
    low, high = (None if ends is None else ends[rows] for ends in (series.low, series.high))
    return series._replace(x=series.x[rows], y=series.y[rows], low=low, high=high)


def fit_to_page(figure: Figure) -> Figure:
    """Returns a figure whose series are thinned, and whose caption says so where they are."""
    series = [thin(one) for one in figure.series]
    if all(len(new.y) == len(old.y) for new, old in zip(series, figure.series, strict=True)):
        return figure
    rule = (
        f"Of more than {MOST} points, the lowest and the highest of each of {MOST // 2} stretches."
    )
    return figure._replace(series=series, caption=f"{figure.caption} {rule}".strip())


def norm_figure(
    name: str, title: str, norm: np.ndarray, limit: np.ndarray, clipped: np.ndarray
) -> Figure:
    """Returns the figure of norm and limit, step by step, with the clipped steps marked."""
    steps = np.arange(1, len(norm) + 1)
    acts = clipped > 0
    series = [
        Series("norm", steps, norm, mode="lines"),
        Series("clipped", steps[acts], norm[acts], mode="markers"),
        Series("limit", steps, limit, mode="lines"),
    ]
    return Figure(name, title, "step", "norm", series, log_y=True)


def loss_figure(loss: np.ndarray) -> Figure:
    """Returns the figure of the losses, step by step, and their running mean."""
    steps = np.arange(1, len(loss) + 1)
    series = [
        Series("loss", steps, loss, mode="lines"),
        Series(f"mean of {WINDOW} steps", steps, smooth(loss), mode="lines"),
    ]
    return Figure("loss", "Loss", "step", "loss", series, log_y=True)


def smooth(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Returns the mean of the finite ones among each value and the `window - 1` before it."""
    finite = np.isfinite(values)
    counts = window_sums(finite.astype(float), window)
    sums = window_sums(np.where(finite, values, 0), window)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def window_sums(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the sum of each value and the `window - 1` before it."""
    sums = np.concatenate([np.zeros(window), np.cumsum(values)])
    return sums[window:] - sums[: len(values)]


def to_list(column: np.ndarray) -> list[Any]:
    """Returns a column as JSON values, six digits a number; nan and inf are None."""
    if column.dtype.kind in "UO":
        return [str(item) for item in column]
    if column.dtype.kind in "iu":
        return column.tolist()
    return [float(f"{item:.6g}") if np.isfinite(item) else None for item in column.tolist()]
