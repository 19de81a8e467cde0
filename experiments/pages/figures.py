"""Figures as data, drawn by matplotlib for a paper and by plotly for a page."""

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np

from experiments.pages.series import Figure, Series, one_each, to_list

# Okabe & Ito's colors, which color-blind readers can tell apart, the yellow left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E")
DASHES = ("solid", "dash", "dot")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxclip",
    "text.parse_math": False,  # names may hold dollars
}
SCALE = "Viridis"  # of heat maps: as readable without colors
Palette = Mapping[str, tuple[str, str]]


def styles() -> Any:
    """Yields the colors and dashes of one series after the other."""
    return ((color, dash) for dash in itertools.cycle(DASHES) for color in COLORS)


def make_palette(figures: Sequence[Figure]) -> Palette:
    """Returns color and dash of every series, by its name: the same in all the figures."""
    names = dict.fromkeys(series.name for figure in figures for series in figure.series)
    return dict(zip(names, styles(), strict=False))


def save(
    figures: Sequence[Figure],
    file: BinaryIO,
    format: Literal["png", "svg"],
    palette: Palette | None = None,
) -> None:
    """Draws figures, one below the other, by matplotlib: the same figures, the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    palette = palette or make_palette(figures)
    heights = [height(figure) for figure in figures]
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.5, sum(heights)), layout="constrained")
        parts = canvas.subfigures(len(figures), height_ratios=heights, squeeze=False)[:, 0]
        for figure, part in zip(figures, parts, strict=True):
            axes = part.subplots()
            axes.set_title(figure.title, loc="left", fontsize=11)
            if figure.heat is not None:
                mesh = axes.pcolormesh(*figure.heat, cmap=SCALE.lower(), shading="nearest")
                part.colorbar(mesh, ax=axes)
            (draw_rows if figure.categories else draw_lines)(figure, axes, palette)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if len(figure.series) > 1 and not one_each(figure):
                part.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        metadata = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
        canvas.savefig(file, format=format, dpi=150, metadata=metadata)


def height(figure: Figure) -> float:
    """Returns the height of a figure in inches."""
    return max(3.0, 0.8 + 0.28 * count_rows(figure)) if figure.categories else 4.0


def count_rows(figure: Figure) -> int:
    """Returns how many categories a figure has."""
    return len({str(x) for series in figure.series for x in series.x})


def draw_lines(figure: Figure, axes: Any, palette: Palette) -> None:
    """Draws series of numbers."""
    dashes = {"solid": "-", "dash": "--", "dot": ":"}
    for one in figure.series:
        color, dash = palette[one.name]
        points = np.where(np.isfinite(one.y), one.y, np.nan)
        if one.mode == "markers":
            axes.plot(one.x, points, ".", color=color, label=one.name, markersize=4, zorder=3)
            continue
        marker = "o" if "markers" in one.mode else ""
        axes.plot(
            one.x, points, dashes[dash], marker=marker, color=color, label=one.name,
            markersize=4, linewidth=1.2,
        )  # fmt: skip
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=color, alpha=0.22, linewidth=0)
    axes.set(xlabel=figure.x, ylabel=figure.y)
    if not figure.log_x and all(one.x.dtype.kind in "iu" for one in figure.series):
        axes.locator_params(axis="x", integer=True)
    if figure.log_x and positive(one.x for one in figure.series):
        logarithmic(axes, "x")
    if figure.log_y and positive(one.y for one in figure.series):
        logarithmic(axes, "y")


def draw_rows(figure: Figure, axes: Any, palette: Palette) -> None:
    """Draws series of categories, a row each, the intervals as bars."""
    for one in figure.series:
        color, _ = palette[one.name]
        ends = None
        if one.low is not None and one.high is not None:
            ends = np.nan_to_num([one.y - one.low, one.high - one.y])
        axes.errorbar(
            one.y, one.x.astype(str), xerr=ends, fmt="o", color=color, label=one.name, capsize=3,
            markersize=5,
        )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel(figure.y)
    if figure.log_y and positive(one.y for one in figure.series):
        logarithmic(axes, "x")


def logarithmic(axes: Any, name: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic, its numbers being plain text."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def positive(columns: Any) -> bool:
    """Returns whether there is anything that a logarithmic axis can show."""
    return any(np.any(np.isfinite(column) & (column > 0)) for column in columns)


def spec(figure: Figure, palette: Palette | None = None) -> dict[str, Any]:
    """Returns a figure as plotly's data and layout, as plain values that JSON can hold."""
    palette = palette or make_palette([figure])
    traces: list[dict[str, Any]] = heat_traces(figure)
    for one in figure.series:
        color, dash = palette[one.name]
        traces += row_traces(one, color) if figure.categories else line_traces(one, color, dash)
    across, along = (figure.y, figure.x) if figure.categories else (figure.x, figure.y)
    log_across = figure.log_y if figure.categories else figure.log_x
    layout = {
        "xaxis": {"title": {"text": escape(across)}, "type": "log" if log_across else None},
        "yaxis": {"title": {"text": escape(along)}, "type": "log" if figure.log_y else None},
        "height": 420,
    }
    if figure.categories:
        layout["yaxis"] = {"type": "category", "autorange": "reversed", "automargin": True}
        layout["height"] = 160 + 26 * count_rows(figure)
        layout["showlegend"] = not one_each(figure)
    return {"data": traces, "layout": layout}


def heat_traces(figure: Figure) -> list[dict[str, Any]]:
    """Returns the heat map of a figure as plotly's traces, if it has one."""
    if figure.heat is None:
        return []
    x, y, z = figure.heat
    return [
        {
            "type": "heatmap",
            "x": to_list(x),
            "y": to_list(y),
            "z": [to_list(row) for row in z],
            "colorscale": SCALE,
            "colorbar": {"thickness": 12},
        }
    ]


def line_traces(one: Series, color: str, dash: str) -> list[dict[str, Any]]:
    """Returns a series of numbers as plotly's traces, the band first."""
    trace = {
        "type": "scatter",
        "name": escape(one.name),
        "x": to_list(one.x),
        "y": to_list(one.y),
        "mode": one.mode,
        "marker": {"color": color, "size": 4 if one.mode == "markers" else 6},
        "line": {"color": color, "dash": dash, "width": 1.0 if one.mode == "lines" else 1.8},
        "legendgroup": escape(one.name),
    }
    if one.low is None or one.high is None:
        return [trace]
    good = np.isfinite(one.low) & np.isfinite(one.high)
    x, low, high = (column[good] for column in (one.x, one.low, one.high))
    band = {
        "type": "scatter",
        "x": to_list(np.concatenate([x, x[::-1]])),
        "y": to_list(np.concatenate([high, low[::-1]])),
        "fill": "toself",
        "fillcolor": f"rgba({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))}, 0.22)",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": escape(one.name),
    }
    return [band, trace]


def row_traces(one: Series, color: str) -> list[dict[str, Any]]:
    """Returns a series of categories as plotly's traces."""
    trace = {
        "type": "scatter",
        "name": escape(one.name),
        "x": to_list(one.y),
        "y": [escape(str(category)) for category in one.x],
        "mode": "markers",
        "marker": {"color": color, "size": 9},
    }
    if one.low is not None and one.high is not None:
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": to_list(one.high - one.y),
            "arrayminus": to_list(one.y - one.low),
        }
    return [trace]


def escape(text: str) -> str:
    """Returns a text that plotly shows verbatim; it would interpret some tags."""
    return html.escape(text, quote=False)
