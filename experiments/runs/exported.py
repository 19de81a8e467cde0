"""What is known of the exported models of a run: `export.json`, and its table on the page."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from experiments import files
from experiments.pages.report import Column, Table
from experiments.runs import serving
from experiments.runs.folder import Run


class Exported(TypedDict):
    """A record of `export.json`; null is not finite.

    Attributes:
        weights: the kind of weights: float32, bfloat16, or int8 with a scale a channel.
        file: its path in the folder of the run.
        sha256: of the file.
        bytes: of the file.
        weight_bytes: of the weights alone.
        largest_difference: of its logits from those of the run's model, over the test data.
        accuracy: on the test data.
        load_seconds: to read and to compile it for a batch of 1.
        milliseconds: the median time of a batch on the CPU, by its size.
        peak_mib: the largest resident memory of the process, after both batch sizes.
        runtime_mib: the part of it that Python and JAX have without a model.
    """

    weights: str
    file: str
    sha256: str
    bytes: int
    weight_bytes: int
    largest_difference: float | None
    accuracy: float
    load_seconds: float
    milliseconds: Mapping[str, float]
    peak_mib: float
    runtime_mib: float


def read(run: Run) -> list[Exported]:
    """Returns the records of a run's `export.json`, none where it was not exported."""
    path = run.folder / "export.json"
    remedy = "delete it, and export the run again"
    return files.read_json(path, list[Exported], remedy) if path.exists() else []


def table(records: Sequence[Exported]) -> Table:
    """Returns records as a table of a page."""
    columns = [
        Column("weights"),
        Column("file, KiB", "{:.1f}"),
        Column("weights, KiB", "{:.1f}"),
        Column("largest difference of a logit", "{:.3g}"),
        Column("accuracy, %", "{:.2f}"),
        *(Column(f"batch of {size}, ms", "{:.3g}") for size in serving.BATCHES),
        Column("peak memory, MiB", "{:.0f}"),
        Column("without the model, MiB", "{:.0f}"),
    ]
    rows = [
        [
            record["weights"],
            record["bytes"] / 1024,
            record["weight_bytes"] / 1024,
            record["largest_difference"],
            100 * record["accuracy"],
            *(record["milliseconds"][str(size)] for size in serving.BATCHES),
            record["peak_mib"],
            record["runtime_mib"],
        ]
        for record in records
    ]
    return Table("export", "Exported, and run by a process of its own on the CPU", columns, rows)
