import csv
import functools
import html
import io
import json
import re

import numpy as np
import pytest

from experiments.errors import BadInput
from experiments.pages import report
from experiments.pages.report import Column, Page, Table
from experiments.pages.series import Figure, Series

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


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["tables", 0, "columns", 1, "format"], "{:1000000000}", "format is '{:1000000000}', not"),
        (["tables", 0, "columns", 1, "format"], "{.__class__}", "format is '{.__class__}', not"),
        (["tables", 0, "columns", 1, "format"], "{:d}", "Unknown format code 'd'"),
        (["tables", 0, "columns"], [], r"zip\(\)"),
        (["tables", 0, "rows", 0], [1], r"zip\(\)"),
        (["tables", 0, "rows", 0, 0], [1], r"\[0\] is \[1\], not a string or"),
        (["tables", 0, "rows", 0, 0], True, "True, not a string or"),
        (["tables", 0, "name"], "///", "are not those of different files"),
        (["tables", 0, "name"], None, "name is None, not a string"),
        (["figures", 0, "log_x"], 1, "log_x is 1, not true or false"),
        (["figures", 0, "series", 0, "y"], [1], "differ in length"),
        (["figures", 0, "series", 0, "y"], ["a", "b"], "is not of numbers"),
        (["figures", 0, "series", 0, "y"], [1, "b"], r"y\[1\] is 'b', not a finite number or null"),
        (["figures", 0, "series", 0, "y"], 1, "y is 1, not a list"),
        (["figures", 0, "series", 0, "low"], [1], "differ in length"),
        (["figures", 0, "series", 0, "mode"], "bars", "mode is 'bars', not one of"),
        (["figures", 0, "series", 0, "x"], [10**400, 1], "x.0. is 1000"),
        (["details"], {"a": 1}, "a is 1, not a string"),
        (["more"], 1, "'more' unknown"),
    ],
)
def test_a_damaged_page_is_told_in_a_line(page, tmp_path, path, value, message):
    values = report.as_json(page)
    *inner, last = path
    functools.reduce(lambda part, key: part[key], inner, values)[last] = value
    (tmp_path / "page.json").write_text(json.dumps(values))
    with pytest.raises(
        BadInput, match=rf"page.json is damaged \(.*{message}.*make it anew"
    ) as told:
        report.load(tmp_path)
    assert "\n" not in str(told.value)


def test_a_missing_key_or_two_parts_of_one_name_are_told(page, tmp_path):
    values = report.as_json(page)
    for part, change in {"tables": lambda t: {**t, "columns": ...}, "figures": dict}.items():
        doubled = {**values, part: [values[part][0], change(values[part][0])]}
        text = json.dumps(doubled, default=lambda _: None)
        (tmp_path / "page.json").write_text(text)
        with pytest.raises(BadInput, match=r"page.json is damaged"):
            report.load(tmp_path)
    for key in values:
        less = {name: value for name, value in values.items() if name != key}
        (tmp_path / "page.json").write_text(json.dumps(less))
        with pytest.raises(BadInput, match=f"{key} missing"):
            report.load(tmp_path)


def test_a_page_with_any_byte_changed_is_a_page_or_told_in_a_line(page, tmp_path):
    path = report.keep(page, tmp_path).with_name("page.json")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for position in rng.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            report.as_html(report.load(tmp_path))
        except BadInput as error:
            told += 1
            assert "\n" not in str(error)
            assert str(path) in str(error)
    assert told > 50
