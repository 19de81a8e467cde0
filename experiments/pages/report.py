"""A page: a question, its answer, and how it was found, as one HTML file and as files for a paper.

It knows nothing of trainings: everything on a `Page` is computed before.
"""

import csv
import functools
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import files
from experiments.pages import figures
from experiments.pages.series import Figure, Heat, Series, fit_to_page, to_list

PARTS = Path(__file__).parent
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs cells that begin so
NOT_FINITE = ("inf", "-inf", "nan")
Cell = str | float | int | None
Format = Literal[
    "{}", "{:d}", "{:.0f}", "{:.1f}", "{:.2f}", "{:+.2f}", "{:.3g}", "{:.4f}", "{:.4g}"
]


class Column(NamedTuple):
    """A column of a table: its title, with the unit, and the format of its numbers."""

    title: str
    format: Format = "{}"


class Table(NamedTuple):
    """Rows under titles; a cell that is None is empty.

    Attributes:
        name: the name of its files.
        title: its heading.
        columns: its columns.
        rows: a cell a column.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


class Page(NamedTuple):
    """The content of a page.

    Attributes:
        title: its title.
        question: the question.
        answer: the answer, a paragraph a line.
        tables: the numbers of the figures.
        figures: the figures.
        details: how it was made, such as the command, the configs and the versions.
    """

    title: str
    question: str
    answer: str
    tables: Sequence[Table]
    figures: Sequence[Figure]
    details: Mapping[str, str]


def keep(page: Page, folder: Path) -> Path:
    """Writes a page into a folder: `page.json`, and the files that it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(page), allow_nan=False)
    files.write_text(folder / "page.json", f"{text}\n")
    return write(from_json(json.loads(text)), folder)


def load(folder: Path) -> Page:
    """Returns the page that a folder holds."""
    path, remedy = folder / "page.json", "make it anew, by the command of its study"
    values = files.read_json(path, Page, remedy)
    with files.read_errors(path, remedy):
        page = from_json(values)
        check(page)
        return page


def check(page: Page) -> None:
    """Raises `ValueError` where the parts of a page do not fit together."""
    for parts in (page.tables, page.figures):
        names = [files.slug(part.name) for part in parts]
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"the names {', '.join(names)} are not those of different files")
    for table in page.tables:
        for row in table.rows:
            format_row(table, row)
    for figure in page.figures:
        for one in figure.series:
            columns = [column for column in (one.y, one.low, one.high) if column is not None]
            if any(column.dtype.kind not in "iuf" for column in columns):
                raise ValueError(f"the series {one.name} of {figure.name} is not of numbers")
            if any(len(column) != len(one.x) for column in columns):
                raise ValueError(f"the columns of {one.name} of {figure.name} differ in length")
        if figure.heat is not None:
            x, y, z = figure.heat
            if len(z) != len(y) or any(len(row) != len(x) for row in z):
                raise ValueError(f"the heat map of {figure.name} is not of its rows and columns")


def write(page: Page, folder: Path) -> Path:
    """Writes `report.html`, `figures/` and `tables/`, and returns the path of the first.

    The same page makes the same bytes.
    """
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    palette = figures.make_palette(page.figures)
    for figure in page.figures:
        for format in ("png", "svg"):
            path = folder / "figures" / f"{files.slug(figure.name)}.{format}"
            draw = functools.partial(figures.save, [figure], format=format, palette=palette)
            files.write(path, draw)
    for table in page.tables:
        name = files.slug(table.name)
        files.write_text(folder / "tables" / f"{name}.csv", as_csv(table))
        files.write_text(folder / "tables" / f"{name}.md", as_markdown(table))
    path = folder / "report.html"
    files.write_text(path, as_html(page))
    return path


def as_html(page: Page) -> str:
    """Returns a page as HTML that needs nothing from outside."""
    import plotly.offline

    drawn = [fit_to_page(figure) for figure in page.figures]
    palette = figures.make_palette(drawn)
    specs = {figure.name: figures.spec(figure, palette) for figure in drawn}
    # No text within a script may end it.
    data = json.dumps(specs, allow_nan=False).replace("<", "\\u003c")
    title = html.escape(page.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title} · jaxclip</title>
<style>
{(PARTS / "page.css").read_text()}</style>
</head>
<body>
<header><p>jaxclip · {title}</p><h1>{html.escape(page.question)}</h1></header>
<main>
<div class="answer">{paragraphs(page.answer)}</div>
{"".join(figure_html(figure) for figure in drawn)}
{"".join(table_html(table) for table in page.tables)}
<h2>How it was made</h2>
{"".join(details_html(name, text) for name, text in page.details.items())}
</main>
<script type="application/json" id="figures">{data}</script>
<script>{plotly.offline.get_plotlyjs()}</script>
<script>
{(PARTS / "page.js").read_text()}</script>
</body>
</html>
"""


def paragraphs(text: str) -> str:
    """Returns lines as paragraphs."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in text.splitlines())


def figure_html(figure: Figure) -> str:
    """Returns the place that the script draws a figure in."""
    name, title = html.escape(figure.name), html.escape(figure.title)
    return f"""<h2>{title}</h2>
<figure><div class="plot" id="plot-{name}" role="img" aria-label="{title}"></div>
<figcaption>{html.escape(figure.caption)}</figcaption></figure>
"""


def table_html(table: Table) -> str:
    """Returns a table whose columns can be sorted by."""
    numeric = [
        any(isinstance(row[i], int | float) for row in table.rows)
        for i in range(len(table.columns))
    ]
    side = [' class="number"' if number else "" for number in numeric]
    head = "".join(
        f'<th scope="col"{kind}><button type="button">{html.escape(column.title)}</button></th>'
        for column, kind in zip(table.columns, side, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td{kind} data-value="{html.escape("" if cell is None else str(cell))}">'
            f"{html.escape(text)}</td>"
            for cell, text, kind in zip(row, format_row(table, row), side, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    title = html.escape(table.title)
    return f"""<h2>{title}</h2>
<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>
"""


def details_html(name: str, text: str) -> str:
    """Returns a text that is folded away."""
    summary = f"<summary>{html.escape(name)}</summary>"
    return f"<details>{summary}<pre>{html.escape(text)}</pre></details>"


def as_csv(table: Table) -> str:
    """Returns a table as CSV with all digits; no cell can be taken for a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(escape_formula(column.title) for column in table.columns)
    writer.writerows([escape_formula(cell) for cell in row] for row in table.rows)
    return file.getvalue()


def escape_formula(cell: Cell) -> Cell:
    """Returns a cell that spreadsheets do not run."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def as_markdown(table: Table) -> str:
    """Returns a table as Markdown."""
    rows = [[column.title for column in table.columns], ["---"] * len(table.columns)]
    rows += [format_row(table, row) for row in table.rows]
    lines = [
        " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in row) for row in rows
    ]
    return "".join(f"| {' '.join(line.splitlines())} |\n" for line in lines)


def format_row(table: Table, row: Sequence[Cell]) -> list[str]:
    """Returns the cells of a row as they are shown."""
    return [
        "" if cell is None else cell if isinstance(cell, str) else column.format.format(cell)
        for column, cell in zip(table.columns, row, strict=True)
    ]


def as_json(page: Page) -> dict[str, Any]:
    """Returns a page as plain values, its series thinned."""
    drawn = [
        {
            **figure._asdict(),
            "series": [series_as_json(series) for series in figure.series],
            "heat": heat_as_json(figure.heat),
        }
        for figure in map(fit_to_page, page.figures)
    ]
    tables = [
        {
            **table._asdict(),
            "columns": [column._asdict() for column in table.columns],
            "rows": [[str(x) if str(x) in NOT_FINITE else x for x in row] for row in table.rows],
        }
        for table in page.tables
    ]
    return {**page._asdict(), "figures": drawn, "tables": tables, "details": dict(page.details)}


def series_as_json(series: Series) -> dict[str, Any]:
    """Returns a series as plain values."""
    arrays = {
        name: None if column is None else to_list(column)
        for name, column in series._asdict().items()
        if name not in ("name", "mode")
    }
    return {"name": series.name, "mode": series.mode, **arrays}


def heat_as_json(heat: Heat | None) -> dict[str, Any] | None:
    """Returns a heat map as plain values."""
    if heat is None:
        return None
    x, y, z = heat
    return {"x": to_list(x), "y": to_list(y), "z": [to_list(row) for row in z]}


def heat_from_json(values: Mapping[str, Any] | None) -> Heat | None:
    """Returns the heat map that `heat_as_json` made these values of."""
    if values is None:
        return None
    return Heat(array(values["x"]), array(values["y"]), [array(row) for row in values["z"]])


def from_json(values: Mapping[str, Any]) -> Page:
    """Returns the page that `as_json` made these values of."""
    drawn = [
        Figure(
            **{
                **figure,
                "series": [series_from_json(one) for one in figure["series"]],
                "heat": heat_from_json(figure["heat"]),
            }
        )
        for figure in values["figures"]
    ]
    tables = [
        Table(
            **{
                **table,
                "columns": [Column(**column) for column in table["columns"]],
                "rows": [
                    [float(x) if x in NOT_FINITE else x for x in row] for row in table["rows"]
                ],
            }
        )
        for table in values["tables"]
    ]
    return Page(**{**values, "figures": drawn, "tables": tables})


def series_from_json(values: Mapping[str, Any]) -> Series:
    """Returns the series that `series_as_json` made these values of."""
    low, high = (None if values[end] is None else array(values[end]) for end in ("low", "high"))
    x, y = array(values["x"]), array(values["y"])
    return Series(values["name"], x, y, low, high, values["mode"])


def array(column: Sequence[Any]) -> np.ndarray:
    """Returns a column of a series; null becomes nan."""
    if any(isinstance(item, str) for item in column):
        return np.array(column)
    return np.array([np.nan if item is None else item for item in column])
