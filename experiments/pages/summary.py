"""Several pages as one Markdown file: the results as the repository shows them."""

from collections.abc import Mapping
from pathlib import Path

from experiments import files
from experiments.errors import BadInput
from experiments.pages.report import Page, as_markdown, load

INTRODUCTION = """# Results

The answers of the studies in this folder, written by

    python -m experiments report experiments/results

from the `page.json` of each. Add `--out FOLDER` and the folder of a study to make its page.

Every arm is tuned over the learning rate and its own number, all with the same budget: rounds of
a quasi-random search, whose box moves until no best point is at its edge; then the best few by
held-out data with further seeds; then the chosen point with seeds that no choice has seen, on the
test data. What an arm is compared with was fixed before. Differences are means over the seeds
that failed in neither, with 95 % confidence intervals by Student's t; q is the p-value of an exact
paired permutation test after Benjamini & Hochberg over the page. `trainings.csv` has a line a
training, and all of the page is computed from it.
"""


def keep(folder: Path) -> Path:
    """Writes the summary of the pages below a folder, and the tables beside each of them.

    Raises:
        BadInput: there is no page, or one is damaged.
    """
    pages = {path.parent.name: load(path.parent) for path in sorted(folder.glob("*/page.json"))}
    if not pages:
        raise BadInput(f"{folder} holds no study: none of its folders has a page.json")
    for name, page in pages.items():
        for table in page.tables:
            if table.name != "all":
                path = folder / name / f"{files.slug(table.name)}.md"
                files.write_text(path, as_markdown(table))
    path = folder / "README.md"
    files.write_text(path, summary(pages))
    return path


def summary(pages: Mapping[str, Page]) -> str:
    """Returns pages, by the names of their folders, as Markdown."""
    return "\n".join([INTRODUCTION, *(section(name, page) for name, page in pages.items())])


def section(name: str, page: Page) -> str:
    """Returns a page as a section: its question, its answer, its tables but that of all points."""
    tables = [
        f"### {table.title}\n\n{as_markdown(table)}" for table in page.tables if table.name != "all"
    ]
    notes = [page.details[key] for key in ("note",) if key in page.details]
    parts = [
        f"## {name}",
        page.question,
        page.answer,
        *notes,
        f"    {page.details.get('command', '')}",
    ]
    return "\n\n".join([*parts, *(table.rstrip("\n") for table in tables)]) + "\n"
