"""One table of benchmarks: `make bench`, or some rows of it, as `make bench ARGS="clip value"`.

A row is measured when every word is in its name. What was measured before is kept in
`docs/benchmarks.json`, and `docs/benchmarks.md` is written from there.
"""

import dataclasses
import json
import math
import os
import pathlib
import platform
import sys

import jax
import optax

import jaxclip
from benchmarks.rows import Result, Row, rows

DOCS = pathlib.Path(__file__).parent.parent / "docs"
KEPT = DOCS / "benchmarks.json"


def main(words: list[str]) -> None:
    """Measures the rows whose name has every word, and writes the page anew."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for row in rows():
        if all(word in row.name for word in words):
            result = dataclasses.asdict(row.measure())
            kept[_key(row)] = {**result, "on": _machine()}
            print(_line(row, Result(**result), _machine()), flush=True)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    (DOCS / "benchmarks.md").write_text(page(kept))


def page(kept: dict[str, dict]) -> str:
    """The page of all rows that were measured."""
    head = [
        "# Benchmarks",
        "",
        "Written by `make bench`, which times both sides of a row in turn in one process. A number",
        "is the median of the pairs, with its quartiles; below the target is better. Others",
        "are measured by `python -m benchmarks.per_example`, and `.sweep` and `.epoch` beside it.",
        "",
        "| row | measured | quartiles | target | reached | and | on |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = []
    for row in rows():
        if _key(row) in kept:
            found = dict(kept[_key(row)])
            machine = found.pop("on")
            lines.append(_line(row, Result(**found), machine))
        else:
            lines.append(f"| {row.name} | not measured yet | | {_target(row)} | | | |")
    return "\n".join(head + lines) + "\n"


def _key(row: Row) -> str:
    return f"{row.name}, {row.unit}"


def _line(row: Row, result: Result, machine: str) -> str:
    if math.isnan(result.median):
        return f"| {row.name} | | | {_target(row)} | | {result.note} | {machine} |"
    digits = 0 if result.median > 20 else 2
    low, median, high = (f"{x:.{digits}f}" for x in (result.low, result.median, result.high))
    reached = "" if row.target is None else "yes" if result.median <= row.target else "no"
    cells = [row.name, f"{median} {row.unit}", f"{low} to {high}", _target(row), reached]
    return "| " + " | ".join([*cells, result.note, machine]) + " |"


def _target(row: Row) -> str:
    return "" if row.target is None else f"{row.target:.3g}"


def _machine() -> str:
    [kind] = {device.device_kind for device in jax.devices()}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    versions = f"jax {jax.__version__}, optax {optax.__version__}, jaxclip {jaxclip.__version__}"
    return f"{kind}, {os.cpu_count()} cores, {platform.machine()}, load {load:.0f}; {versions}"


if __name__ == "__main__":
    main(sys.argv[1:])
