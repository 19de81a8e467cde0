import io
import json

import numpy as np
import pytest

from experiments.pages import figures
from experiments.pages.series import Figure, Series


def drawn(figure, kind):
    file = io.BytesIO()
    figures.save([figure], file, kind)
    return file.getvalue()


def lines(name="lines"):
    x = np.logspace(-3, 2, 6)
    y = np.array([1.0, np.nan, 3.0, 4.0, np.inf, 6.0])
    series = [Series("$\\frac <b>", x, y, y - 1, y + 1), Series("b", x, y, mode="markers")]
    return Figure(name, "$a_title", "limit", "score", series, log_x=True, log_y=True)


def rows():
    names = np.array(["zclip", "clip|<x>"])
    y = np.array([2.0, 1.0])
    return Figure("rows", "rows", "method", "score", [Series("mnist", names, y, y - 1, y + 0.5)])


@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("figure", [lines(), rows(), Figure("empty", "", "", "", [])])
def test_same_figure_same_bytes(figure, kind):
    assert drawn(figure, kind) == drawn(figure, kind)


def test_kinds_of_files():
    assert drawn(lines(), "png").startswith(b"\x89PNG")
    svg = drawn(lines(), "svg")
    assert b"<svg" in svg and b"$\\frac &lt;b&gt;" in svg and b"dc:date" not in svg
    assert b"mathdefault" not in svg


def test_spec_is_json_and_keeps_gaps():
    band, line, points = figures.spec(lines())["data"]
    json.dumps(figures.spec(lines()), allow_nan=False)
    assert line["y"] == [1.0, None, 3.0, 4.0, None, 6.0]
    assert (points["mode"], band["fill"]) == ("markers", "toself")
    assert len(band["x"]) == 8  # there and back over the four finite points
    assert band["y"] == [2.0, 4.0, 5.0, 7.0, 5.0, 3.0, 2.0, 0.0]


def test_categories_lie_across():
    (trace,) = figures.spec(rows())["data"]
    assert (trace["x"], trace["y"]) == ([2.0, 1.0], ["zclip", "clip|&lt;x&gt;"])
    assert trace["error_x"]["array"] == [0.5, 0.5] and trace["error_x"]["arrayminus"] == [1.0, 1.0]


def test_colors_are_apart():
    styles = [style for style, _ in zip(figures.styles(), range(21), strict=False)]
    assert len(set(styles)) == 21
