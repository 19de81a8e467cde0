"""The options of a comparison."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from experiments.options.places import Coordinator, Places
from experiments.processes import Processes
from experiments.studies.catalog import ASKS

STUDIES = "\n".join(["The study:", *(f"{name}: {asks}" for name, asks in ASKS.items())])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Places):
    """Answer a question by training every arm of a study, and write the answer as a page.

    The same command continues a stopped comparison, and trains only the trials that are missing.

    Attributes:
        study: The study.
        full: Train the full form, with more of everything, instead of the quick one.
        out: The folder of the study. Default: runs/STUDY-quick or runs/STUDY-full.
        settings: Train only on these settings, such as mnist_deep, where the study has several.
        chunk: The number of trainings side by side.
        coordinator: HOST:PORT of the first process, where several processes work together; each
            is started with the same command and a number of its own. With auto, JAX finds the
            processes of a cluster by itself.
        processes: The number of processes.
        process: The number of this one, from 0.
    """

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=STUDIES)]
    full: bool = False
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    settings: tuple[str, ...] = ()
    chunk: int = 64
    coordinator: Coordinator = None
    processes: int = 1
    process: int = 0

    def carry_out(self, command: str) -> None:
        """Trains the trials that are missing, and prints the answer."""
        from experiments.studies import compare

        compare.run(
            self.study,
            full=self.full,
            settings=self.settings,
            folder=self.out or Path("runs") / f"{self.study}-{'full' if self.full else 'quick'}",
            folders=self.folders,
            chunk=self.chunk,
            platform=self.platform,
            processes=Processes(self.coordinator, self.processes, self.process),
            command=command,
        )
