"""What a study compares: arms, the box of numbers that each is tuned in, and what they came to.

An arm is a training with a clip, and a `Range` for every number that is tuned, its learning rate
among them:

>>> from experiments.studies.settings import SETTINGS
>>> import jaxclip
>>> deep = SETTINGS["mnist_deep"]
>>> arm = Arm(
...     "constant limit",
...     deep,
...     deep.config(jaxclip.clip_by_global_norm),
...     box={"learning_rate": Range(0.03, 3.0), "limit": Range(0.1, 10.0)},
... )
>>> arm.title
'mnist_deep: constant limit'

The same program with a limit of infinity is the arm without a clip:

>>> bare = dataclasses.replace(arm, name="no clip", against="", fixed={"limit": math.inf})
>>> bare = dataclasses.replace(bare, box=arm.box_of("learning_rate"))
>>> bare.point({"learning_rate": 0.1})
{'limit': inf, 'learning_rate': 0.1}
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import files
from experiments.studies.settings import Setting
from experiments.training.config import Config

Point = Mapping[str, float]
NO_CLIP = "no clip"


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a number is searched at first; it is widened where the best lies at an edge.

    Attributes:
        low: its lower end.
        high: its upper end.
        log: whether equal ratios, rather than equal differences, are equally far apart.
        least: the least value that the number can have.
        most: the largest one.
    """

    low: float
    high: float
    log: bool = True
    least: float = 0.0
    most: float = math.inf

    def __post_init__(self) -> None:
        if not self.least <= self.low < self.high <= self.most or (self.log and self.low <= 0):
            raise ValueError(f"{self} is no range: give least <= low < high <= most, above 0")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: its name on the page, as one reads it in a list: "linear decay to 10 %".
        setting: the task and its circumstances.
        config: the setting's training with the clip of this arm; arms of equal configs are one
            program.
        box: the numbers that are tuned, by the argument of `trial`; `learning_rate` is among them.
        fixed: the numbers that are not.
        against: the name of the arm of the same setting that this one is compared with, fixed
            before anything is trained; empty for a baseline.
        labels: the method's names of numbers that are called otherwise by `trial`.
    """

    name: str
    setting: Setting
    config: Config
    box: Mapping[str, Range]
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    against: str = NO_CLIP
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name among all arms of its study."""
        return f"{self.setting.name}: {self.name}"

    @property
    def slug(self) -> str:
        """Its title as a file name."""
        return files.slug(self.title)

    def box_of(self, *names: str) -> dict[str, Range]:
        """Returns the part of its box that has these names."""
        return {name: self.box[name] for name in names}

    def point(self, tuned: Point) -> Point:
        """Returns the arguments of `trial` but the seed, for values of the tuned numbers."""
        return {**self.setting.numbers, **self.fixed, **tuned}


@dataclasses.dataclass(frozen=True)
class Design:
    """The budget of every arm: all arms of a study have the same.

    Every round trains `points` points of a quasi-random sequence, the first in the box of the arm,
    each later one around the best so far; where the best of any arm of a setting is at the edge
    of what was tried, all arms of the setting have further rounds, up to `most_rounds`. The
    `finalists` best are trained with further seeds, and the best of them by held-out data is the
    point that the arm is reported at, with seeds that no choice has seen.

    Attributes:
        points: of a round; a power of two.
        tuning_seeds: of every point.
        rounds: at least.
        most_rounds: at most.
        finalists: how many points are trained again before one is chosen.
        final_seeds: further seeds of each of them.
        slice_points: values of every tuned number, with the others as chosen, from which the width
            of what works is read.
        slice_seeds: of every one of them.
        seeds: of the chosen point.
    """

    points: int = 16
    tuning_seeds: int = 2
    rounds: int = 2
    most_rounds: int = 4
    finalists: int = 4
    final_seeds: int = 4
    slice_points: int = 13
    slice_seeds: int = 4
    seeds: int = 16


FULL = Design()
# For settings whose trainings take ten seconds and more, and for very many arms.
LIGHT = Design(
    points=8,
    tuning_seeds=2,
    rounds=2,
    most_rounds=3,
    finalists=3,
    final_seeds=2,
    slice_points=7,
    slice_seeds=2,
    seeds=12,
)
QUICK = Design(
    points=8,
    tuning_seeds=1,
    rounds=1,
    most_rounds=1,
    finalists=2,
    final_seeds=2,
    slice_points=5,
    slice_seeds=1,
    seeds=6,
)


class Training(NamedTuple):
    """One training: a line of `trainings.csv`.

    Attributes:
        stage: what it was for: "round 1", "finalists", "widths" or "test".
        setting: the name of its setting.
        arm: the name of its arm.
        point: its numbers.
        seed: its seed.
        validation: its score on held-out data in the end; nan is none.
        test: its score on the test data.
        loss: its mean loss over the last epoch.
        clip_rate: the share of the steps in which the clip acted.
        failed: whether it diverged, or learned nothing.
        seconds: its share of the time of its chunk.
        measures: what else the study measures of a training.
    """

    stage: str
    setting: str
    arm: str
    point: Point
    seed: int
    validation: float
    test: float
    loss: float
    clip_rate: float
    failed: bool
    seconds: float
    measures: Mapping[str, float]


class Outcome(NamedTuple):
    """The trainings of an arm at one point, in one stage: one for every seed.

    Attributes:
        arm: the arm.
        stage: as in `Training`.
        point: its numbers.
        trainings: one for every seed.
        probed: what `Config.probe` returned of the first seed, such as pictures; it is no part of
            the record.
    """

    arm: Arm
    stage: str
    point: Point
    trainings: Sequence[Training]
    probed: np.ndarray = np.zeros(0)

    @property
    def validation(self) -> float:
        """The mean score on held-out data, by which points are chosen.

        A failed training has the score of having learned nothing.
        """
        floor = self.arm.setting.floor
        return float(np.mean([floor if one.failed else one.validation for one in self.trainings]))

    @property
    def scores(self) -> np.ndarray:
        """The score f64[seeds] of every seed on the test data; one that failed is nan."""
        return np.array([math.nan if one.failed else one.test for one in self.trainings])

    @property
    def mean(self) -> float:
        """The mean score of the seeds that did not fail; nan where all did."""
        scores = self.scores[np.isfinite(self.scores)]
        return float(np.mean(scores)) if len(scores) else math.nan

    @property
    def failed(self) -> int:
        """How many seeds failed: they diverged, or learned nothing."""
        return sum(one.failed for one in self.trainings)

    @property
    def clip_rate(self) -> float:
        """The share of the steps in which the clip acted."""
        return float(np.mean([one.clip_rate for one in self.trainings]))

    def measure(self, name: str) -> np.ndarray:
        """Returns a measure f64[seeds] of the study."""
        return np.array([one.measures[name] for one in self.trainings])
