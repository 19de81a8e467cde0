"""The command `list`: the studies, what each asks, and where there are results of it."""

import csv
from collections.abc import Iterator
from pathlib import Path

from experiments.studies.catalog import ASKS, CONFIG, PAGE, RESULTS, TRAININGS, find
from experiments.studies.compare import count


def lines(runs: Path) -> Iterator[str]:
    """Yields the lines of the list; `runs` is where comparisons are kept by default.

    There are more trainings than said where a best point is at the edge of what was tried.
    """
    width = max(map(len, ASKS))
    for name, asks in ASKS.items():
        study = find(name)
        quick, full = (count(study.arms(form), study.design(form)) for form in (False, True))
        yield f"{name:{width}}  {asks}"
        yield f"{'':{width}}  {quick:,} trainings; in the full form {full:,}, or more"
        for folder in (RESULTS / name, *sorted(runs.glob(f"{name}-*"))):
            if state := describe(folder):
                yield f"{'':{width}}  {folder}: {state}"


def describe(folder: Path) -> str | None:
    """Returns what a folder holds of a study; None is nothing."""
    if (folder / TRAININGS).is_file():
        with (folder / TRAININGS).open(newline="") as file:
            return f"{sum(1 for _ in csv.reader(file)) - 1} trainings"
    if (folder / CONFIG).is_file():
        return "not finished; the same command continues it"
    return "of the older design" if (folder / PAGE).is_file() else None
