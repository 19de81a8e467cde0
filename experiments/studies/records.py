"""The record of a study: `trainings.csv`, a line a training, from which its page is computed."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import files
from experiments.studies.arms import Training
from experiments.studies.catalog import TRAININGS

POINT, MEASURE = "point.", "measure."
REMEDY = "restore it, or train the study anew into another folder"
SINGLE = ("validation", "test", "loss", "clip_rate")
COLUMNS = ("stage", "setting", "arm", "seed", *SINGLE, "failed", "seconds")


def write(folder: Path, trainings: Sequence[Training]) -> None:
    """Writes the trainings of a study, whole or not at all."""
    files.write_text(folder / TRAININGS, as_csv(trainings))


def read(folder: Path) -> list[Training]:
    """Returns the trainings that a folder holds.

    Raises:
        BadInput: there are none, or the file is damaged.
    """
    path = folder / TRAININGS
    with files.read_errors(path, REMEDY):
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True))
        header = rows[0] if rows else []
        if missing := [name for name in COLUMNS if name not in header]:
            raise ValueError(f"it has no column {missing[0]}")
        trainings = []
        for number, row in enumerate(rows[1:], 2):
            with files.at_place(f"line {number}"):
                trainings.append(parse(dict(zip(header, row, strict=True))))
        return trainings


def as_csv(trainings: Sequence[Training]) -> str:
    """Returns trainings as CSV; every number reads back as it was."""
    numbers = collect(name for one in trainings for name in one.point)
    measures = collect(name for one in trainings for name in one.measures)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    extra = [*(POINT + name for name in numbers), *(MEASURE + name for name in measures)]
    writer.writerow([*COLUMNS, *extra])
    for one in trainings:
        cells = [getattr(one, name) for name in COLUMNS]
        cells += [one.point.get(name) for name in numbers]
        cells += [one.measures.get(name) for name in measures]
        writer.writerow(map(as_cell, cells))
    return file.getvalue()


def collect(names: Iterable[str]) -> list[str]:
    """Returns names without repetition, in their order."""
    return list(dict.fromkeys(names))


def as_cell(value: Any) -> str:
    """Returns a value as a cell; nothing is an empty one, and truth is 1."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def parse(cells: dict[str, str]) -> Training:
    """Returns the training of a line.

    Raises:
        ValueError: a cell is not what its column holds.
    """
    if cells["failed"] not in ("0", "1"):
        raise ValueError(f"failed is {files.shorten(cells['failed'])}, not 0 or 1")
    return Training(
        stage=cells["stage"],
        setting=cells["setting"],
        arm=cells["arm"],
        point=with_prefix(cells, POINT),
        seed=int(cells["seed"]),
        failed=cells["failed"] == "1",
        seconds=float(cells["seconds"]),
        measures=with_prefix(cells, MEASURE),
        **{name: float(cells[name]) for name in SINGLE},
    )


def with_prefix(cells: dict[str, str], prefix: str) -> dict[str, float]:
    """Returns the numbers of the columns with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): float(cell)
        for name, cell in cells.items()
        if name.startswith(prefix) and cell
    }


def single(number: Any) -> float:
    """Returns a float32 as the shortest decimal number that is nearest to it."""
    return float(str(np.float32(number))) if math.isfinite(number) else float(number)
