"""The options of an export."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments.errors import BadInput, check_name
from experiments.options.places import Folder
from experiments.options.private import RunPrivate
from experiments.options.run import RunMnist
from experiments.runs.folder import open_run

RUNS = {options.task: options for options in (RunMnist, RunPrivate)}


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the model of a run as StableHLO, by jax.export, for CPU, CUDA and TPU in one file.

    Each file is loaded again in a process of its own, held against the model of the run on the
    test data, and timed on the CPU. The files are in FOLDER/export, and their sizes and times on
    the page of the run.

    Attributes:
        folder: The folder of a run.
        weights: The types that the weights are stored as. int8 has a scale for each channel.
        mnist_dir: The folder with the four original files of the data set. Default: the
            repository's own.
    """

    folder: tyro.conf.Positional[Path]
    weights: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32", "bfloat16", "int8")
    mnist_dir: Folder = None

    def carry_out(self, command: str) -> None:
        """Writes and tries the files, and prints what they take."""
        from experiments.pages import report
        from experiments.runs import export, exported
        from experiments.runs.page import page

        if not self.weights:
            raise BadInput(f"--weights has no type: give some of {', '.join(export.WEIGHTS)}")
        run = open_run(self.folder)
        task = str(run.identity.get("task"))
        check_name(task, RUNS, f"task that can be exported, as {self.folder} has it")
        options = RUNS[task](resume=self.folder, mnist_dir=self.mnist_dir).restore_options()
        records = export.export(options.job(), run, self.weights)
        print(report.as_markdown(exported.table(records)))
        print(f"The models are in {self.folder / 'export'}")
        print(f"The page is {report.write(page(run), self.folder)}")
