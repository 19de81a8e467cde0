import csv
import html
import io
import json
import re

import numpy as np
import pytest

from experiments import report
from experiments.errors import BadInput
from experiments.figures import Figure, Series
from experiments.report import Column, Page, Table

EVIL = "</script><script>alert(1)</script>\u2028\"'&|"


@pytest.fixture
def page():
    x = np.array([0.1, 1.0])
    figure = Figure("a/b", EVIL, EVIL, "score", [Series(EVIL, x, x, x - 1, x + 1)], caption=EVIL)
    rows = [[EVIL, 0.1234567], ["=1+1", None], ["a\nb\\", float("inf")], ["-x", float("nan")]]
    table = Table("t/u", EVIL, [Column(EVIL), Column("score, %", "{:.2f}")], rows)
    return Page(EVIL, EVIL, f"first\n{EVIL}", [table], [figure], {EVIL: EVIL})


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_files_and_the_same_bytes(page, tmp_path):
    path = report.keep(page, tmp_path / "one")
    report.keep(page, tmp_path / "two")
    one = files(tmp_path / "one")
    assert path == tmp_path / "one" / "report.html"
    assert set(one) == {
        "page.json", "report.html", "figures/a-b.png", "figures/a-b.svg",
        "tables/t-u.csv", "tables/t-u.md",
    }  # fmt: skip
    assert one == files(tmp_path / "two")


def test_loaded_page_makes_the_same_bytes(page, tmp_path):
    report.keep(page, tmp_path / "one")
    report.keep(report.load(tmp_path / "one"), tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_nothing_ends_a_script_or_is_a_tag(page):
    text = report.as_html(page)
    assert "alert(1)</script>" not in text and "<script>alert" not in text
    assert len(re.findall(r"<script[ >]", text[: text.index("plotly.js v")])) == 2
    data = text.split('id="figures">')[1].split("</script>")[0]
    assert "\u2028" not in data
    assert json.loads(data)["a/b"]["data"][1]["name"] == html.escape(EVIL, quote=False)


def test_csv_round_trip(page):
    _, *rows = csv.reader(io.StringIO(report.as_csv(page.tables[0])))
    assert rows == [[EVIL, "0.1234567"], ["'=1+1", ""], ["a\nb\\", "inf"], ["'-x", "nan"]]


def test_markdown_has_one_line_a_row_and_one_bar_a_border(page):
    lines = report.as_markdown(page.tables[0]).split("\n")[:-1]
    assert len(lines) == 6
    cells = [re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in lines]
    assert all(len(row) == 2 for row in cells)
    assert cells[2][1].strip() == "0.12" and cells[1] == [" --- ", " --- "]


@pytest.mark.parametrize("text", ["{}", "[]", '{"title": 1}', "no json"])
def test_page_of_another_version(text, tmp_path):
    (tmp_path / "page.json").write_text(text)
    with pytest.raises(BadInput, match=r"page\.json"):
        report.load(tmp_path)
