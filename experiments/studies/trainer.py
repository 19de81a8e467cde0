"""The trainings that a search asks for: in sweeps of one program each, and as lines of a record."""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import files
from experiments.studies.arms import Outcome, Training
from experiments.studies.records import single
from experiments.studies.search import Request
from experiments.studies.settings import Setting
from experiments.sweeps.grid import stack
from experiments.sweeps.sweep import timed_sweep
from experiments.training.data import Data
from experiments.training.train import History

Measures = Mapping[str, Callable[[History], float]]


@dataclasses.dataclass
class Trainer:
    """Trains what is asked for, and keeps a line of every training.

    Attributes:
        folder: where the sweeps are kept.
        load: the data of a setting.
        measures: what is measured of a training besides its score.
        chunk: the number of trainings side by side.
        report: called with a name, and how many more trainings are done.
        trainings: all lines so far.
    """

    folder: Path
    load: Callable[[Setting], Data]
    measures: Measures
    chunk: int
    report: Callable[[str, int], None] = lambda name, more: None
    trainings: list[Training] = dataclasses.field(default_factory=list)

    def __call__(self, requests: Sequence[Request]) -> list[Outcome]:
        """Returns the outcome of every request; those of one program are one sweep."""
        outcomes: dict[int, Outcome] = {}
        for number, indices in enumerate(group(requests)):
            here = [requests[index] for index in indices]
            outcomes.update(zip(indices, self.train(here, number), strict=True))
        ordered = [outcomes[index] for index in range(len(requests))]
        self.trainings += [one for outcome in ordered for one in outcome.trainings]
        return ordered

    def train(self, requests: Sequence[Request], number: int) -> list[Outcome]:
        """Returns the outcomes of requests of one program, the `number`-th of its stage."""
        arm, stage = requests[0].arm, requests[0].stage
        rows = [row for request in requests for row in singles(request)]
        history, seconds = timed_sweep(
            arm.config,
            stack([{**row.point, "seed": row.seeds[0]} for row in rows]),
            self.load(arm.setting),
            self.folder / files.slug(f"{stage} {number} {arm.title}"),
            chunk=self.chunk,
            report=count_progress(lambda more: self.report(f"{stage}, {arm.title}", more)),
        )
        lines = [
            describe(row, one, float(time), self.measures)
            for row, one, time in zip(rows, split(history), seconds, strict=True)
        ]
        probed = np.asarray(history.probed)
        starts = itertools.accumulate((len(one.seeds) for one in requests), initial=0)
        return [
            Outcome(one.arm, one.stage, one.point, lines[at : at + len(one.seeds)], probed[at])
            for one, at in zip(requests, starts, strict=False)
        ]


def group(requests: Sequence[Request]) -> list[list[int]]:
    """Returns the places of the requests of each program, which are trained side by side."""
    groups: dict[Hashable, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(program(request), []).append(index)
    return list(groups.values())


def singles(request: Request) -> list[Request]:
    """Returns a request of several seeds as requests of one seed each."""
    return [request._replace(seeds=[seed]) for seed in request.seeds]


def program(request: Request) -> Hashable:
    """Returns what requests of one program have in common."""
    arm, further = request.arm, (name for name in request.point if "." in name)
    return arm.setting, arm.config, frozenset(further)


def split(history: History) -> Iterator[History]:
    """Yields the history of every training."""
    for row in range(len(history.loss)):
        yield jax.tree.map(lambda leaf, row=row: leaf[row], history)


def describe(request: Request, history: History, seconds: float, measures: Measures) -> Training:
    """Returns the training of one seed as a line of the record."""
    arm = request.arm
    validation, test = (float(scores[-1]) for scores in (history.validation, history.score))
    loss = np.asarray(history.loss, np.float64)[-1]
    learned = np.isfinite(loss[-1]) and validation > arm.setting.floor
    return Training(
        stage=request.stage,
        setting=arm.setting.name,
        arm=arm.name,
        point=request.point,
        seed=request.seeds[0],
        validation=single(validation),
        test=single(test),
        loss=single(loss.mean()),
        clip_rate=single(np.mean(np.asarray(history.clipped) > 0)),
        failed=not learned,
        seconds=float(f"{seconds:.4g}"),
        measures={name: single(measure(history)) for name, measure in measures.items()},
    )


def count_progress(tell: Callable[[int], Any]) -> Callable[[int, int], None]:
    """Returns the report of a sweep that passes on how many more trainings are done."""
    before = 0

    def report(done: int, total: int) -> None:
        nonlocal before
        tell(done - before)
        before = done

    return report
