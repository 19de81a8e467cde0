"""Studies: one question, the trainings that answer it, and their outcomes.

An `Arm` is one side of the comparison, tuned over a grid of its own with the same number of points
as every other; an `Outcome` has the histories of one of its points, for all seeds.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments import files
from experiments.pages.report import Table
from experiments.pages.series import Figure
from experiments.studies.settings import Setting
from experiments.sweeps.grid import Grid
from experiments.training.config import Config
from experiments.training.train import History

SAME = "not significantly different (paired t-tests)"
LEVEL = 0.05  # the share of the reported differences that may be chance


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: its name on the page.
        setting: the task and its circumstances.
        config: the setting's training with the clip of this arm.
        grid: the points to choose the best of; every seed runs at every point.
        knob: the method's name of the number that is `limit` in the grid; empty where the grid
            has nothing to tune in the method.
    """

    name: str
    setting: Setting
    config: Config
    grid: Grid
    knob: str = "limit"

    @property
    def title(self) -> str:
        """Its name among all arms of its study."""
        return f"{self.setting.name}: {self.name}"

    @property
    def slug(self) -> str:
        """Its title as a file name."""
        return files.slug(self.title)


class Outcome(NamedTuple):
    """The histories of an arm at one point of its grid, with a leading axis of seeds."""

    arm: Arm
    point: Mapping[str, float]
    history: History

    @property
    def scores(self) -> np.ndarray:
        """The score of every seed in the end, on the test data; one that is not finite is nan."""
        return last_scores(self.history.score)

    @property
    def mean(self) -> float:
        """The mean of the scores; nan where a seed has none."""
        return float(np.mean(self.scores))

    @property
    def validation(self) -> float:
        """The mean of the scores on the validation data, by which the point is chosen."""
        return float(np.mean(last_scores(self.history.validation)))

    @property
    def at_edge(self) -> bool:
        """Whether any of its numbers is the least or the largest of several in the grid."""
        tried = {name: {point[name] for point in self.arm.grid} for name in self.point}
        return any(
            len(numbers) > 1 and self.point[name] in (min(numbers), max(numbers))
            for name, numbers in tried.items()
        )

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % confidence interval of the mean, by Student's t."""
        count = len(self.scores)
        if count < 2:
            return math.nan
        return float(stats.t.ppf(0.975, count - 1) * stats.sem(self.scores))

    @property
    def last_loss(self) -> float:
        """The mean loss over the last epoch."""
        return float(np.mean(np.asarray(self.history.loss, np.float64)[:, -1]))

    @property
    def clip_rate(self) -> float:
        """The share of the steps that the clip shrank something in."""
        return float(np.mean(np.asarray(self.history.clipped) > 0))

    @property
    def failed(self) -> float:
        """The share of the seeds whose loss was not finite in the end."""
        return float(np.mean(~np.isfinite(np.asarray(self.history.loss)[:, -1, -1])))


@dataclasses.dataclass(frozen=True)
class Study:
    """One question, in a file of its own.

    Attributes:
        name: how it is asked for.
        question: the heading of its page.
        arms: its arms, of the quick form or the full one.
        figures: its own figures, of the outcomes.
        answer: the conclusion from the outcomes, in a sentence or two.
        tables: its own tables, of the outcomes.
        seeds: how many every point of the full form has.
    """

    name: str
    question: str
    arms: Callable[[bool], Sequence[Arm]]
    figures: Callable[[Sequence[Outcome]], Sequence[Figure]]
    answer: Callable[[Sequence[Outcome]], str]
    tables: Callable[[Sequence[Outcome]], Sequence[Table]] = lambda outcomes: ()
    seeds: int = 8


def last_scores(scores: Any) -> np.ndarray:
    """Returns the last of the scores [seeds, epochs] of every seed; one not finite is nan."""
    last = np.asarray(scores, np.float64)[:, -1]
    return np.where(np.isfinite(last), last, np.nan)


def sort_key(score: float) -> float:
    """Returns the sort key of a score: one that is not a number is less than any other."""
    return -math.inf if math.isnan(score) else score


def best(
    outcomes: Sequence[Outcome],
    by: Callable[[Outcome], float] = lambda outcome: outcome.validation,
) -> list[Outcome]:
    """Returns the best outcome of every arm, by default on the validation data, in their order."""
    chosen: dict[str, Outcome] = {}
    for outcome in outcomes:
        if sort_key(by(outcome)) > sort_key(by(chosen.setdefault(outcome.arm.title, outcome))):
            chosen[outcome.arm.title] = outcome
    return list(chosen.values())


def by_setting(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Returns the outcomes of every setting, in their order."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arm.setting.name, []).append(outcome)
    return groups


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Returns, setting by setting, the best arm and those not significantly different."""
    sentences = []
    for setting, here in by_setting(best(outcomes)).items():
        first, *others = sorted(here, key=lambda one: sort_key(one.mean), reverse=True)
        pairs = zip(others, p_values(first, others), strict=True)
        alike = [one.arm.name for one, p in pairs if p > LEVEL]
        worse = len(others) - len(alike)
        sentences.append(
            f"On {setting}, {first.arm.name} is best with {100 * first.mean:.2f} "
            f"± {100 * first.half_width:.2f} %; "
            + (f"{SAME}: {', '.join(alike)}; " if alike else "")
            + f"{worse} of {len(others)} others are worse."
        )
    return " ".join(sentences)


def p_values(first: Outcome, others: Sequence[Outcome]) -> np.ndarray:
    """Returns the p-values that others have the mean of the first, after Benjamini & Hochberg.

    Below `LEVEL`, no more than that share of the differences is expected to be chance.
    """
    return stats.false_discovery_control([p_value(first, one) for one in others])


def p_value(one: Outcome, other: Outcome) -> float:
    """Returns the p-value that two outcomes have one mean, by the paired t-test over the seeds."""
    if math.isnan(other.mean) or len(one.scores) < 2:
        return 0.0
    if np.ptp(one.scores - other.scores) == 0:
        return float(one.mean == other.mean)
    return float(stats.ttest_rel(one.scores, other.scores).pvalue)
