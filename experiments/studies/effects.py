"""What differs from the baseline, by how much, and how surely; and how wide the choice is.

What an arm is compared with is named by the study before anything is trained. Seeds that failed are
counted apart from the scores of the others: by exact tests of their own.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.errors import BadInput
from experiments.studies.arms import Outcome
from experiments.studies.search import Finding

LEVEL = 0.05  # the share of the reported differences that may be chance
POWER = 0.8  # with which a difference is seen that is called detectable
POINT = 0.01  # of the score, within which a number works as well as the best
EXACT = 16  # differences, all of whose signs are gone through


class Effect(NamedTuple):
    """The difference of an arm to its baseline.

    Attributes:
        finding: what is known of the arm.
        baseline: what is known of the baseline.
        difference: of the mean scores, over the seeds that failed in neither; nan without any.
        low: the lower end of its 95 % confidence interval, by Student's t.
        high: the upper end.
        detectable: the difference that would have been seen, four times in five.
        q: the paired permutation test's p-value, after Benjamini & Hochberg over the whole page.
        failures_q: the same of McNemar's exact test of which seeds failed.
        pairs: how many seeds failed in neither.
    """

    finding: Finding
    baseline: Finding
    difference: float
    low: float
    high: float
    detectable: float
    q: float
    failures_q: float
    pairs: int

    @property
    def seen(self) -> bool:
        """Whether the scores differ, by no more chance than `LEVEL`."""
        return self.q < LEVEL


def by_setting(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Returns the findings of every setting, in their order."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.arm.setting.name, []).append(finding)
    return groups


def find_baseline(finding: Finding, findings: Sequence[Finding]) -> Finding:
    """Returns the finding that an arm is compared with, of the same setting."""
    for one in by_setting(findings)[finding.arm.setting.name]:
        if one.arm.name == finding.arm.against:
            return one
    raise BadInput(
        f"{finding.arm.title} is compared with {finding.arm.against}, which is no arm of this "
        f"setting: name one that there is"
    )


def find_effects(findings: Sequence[Finding]) -> list[Effect]:
    """Returns the effect of every arm that is compared with another.

    Args:
        findings: of the whole page, over which false discoveries are controlled.
    """
    effects = [
        compare(finding, find_baseline(finding, findings))
        for finding in findings
        if finding.arm.against
    ]
    raw = np.array([[effect.q, effect.failures_q] for effect in effects]).reshape(-1)
    tested = np.isfinite(raw)
    if tested.any():
        raw[tested] = stats.false_discovery_control(raw[tested])
    return [
        effect._replace(q=float(q), failures_q=float(failures_q))
        for effect, (q, failures_q) in zip(effects, raw.reshape(-1, 2), strict=True)
    ]


def compare(finding: Finding, baseline: Finding) -> Effect:
    """Returns the effect of an arm, with the p-values of its tests as they are, alone."""
    differences = finding.chosen.scores - baseline.chosen.scores
    differences = differences[np.isfinite(differences)]
    mean, half, detectable = estimate(differences)
    return Effect(
        finding=finding,
        baseline=baseline,
        difference=mean,
        low=mean - half,
        high=mean + half,
        detectable=detectable,
        q=permutation_test(differences),
        failures_q=failure_test(finding.chosen, baseline.chosen),
        pairs=len(differences),
    )


def estimate(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns mean, half of its 95 % interval, and the mean that would have been seen.

    The last is the mean at which a two-sided t-test at 5 % finds something with `POWER`.
    """
    count = len(differences)
    if count < 2:
        return (float(differences[0]) if count else math.nan), math.nan, math.nan
    error = float(stats.sem(differences))
    quantile = float(stats.t.ppf(1 - LEVEL / 2, count - 1))
    detectable = (quantile + float(stats.t.ppf(POWER, count - 1))) * error
    return float(np.mean(differences)), quantile * error, detectable


def permutation_test(differences: np.ndarray) -> float:
    """Returns the p-value that paired differences have mean 0, by all signs that they may have.

    nan where there are less than two, or more than there are signs to go through.
    """
    if not 2 <= len(differences) <= EXACT:
        return math.nan
    # As many resamples as there are signs: every one of them, once.
    signs = 2 ** len(differences)
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=signs
    )
    return float(test.pvalue)


def failure_test(one: Outcome, other: Outcome) -> float:
    """Returns the p-value that two outcomes fail as often, by McNemar's exact test over the seeds.

    nan where no seed fails in one of them alone.
    """
    pairs = [(a.failed, b.failed) for a, b in zip(one.trainings, other.trainings, strict=True)]
    only_one, only_other = pairs.count((True, False)), pairs.count((False, True))
    if only_one + only_other == 0:
        return math.nan
    return float(stats.binomtest(only_one, only_one + only_other).pvalue)


class Width(NamedTuple):
    """How far a number may go for the score to stay within a point of the best along it.

    Attributes:
        low: the least value that works.
        high: the largest one.
        decades: how far they are apart; nan for a number that is not searched by its logarithm.
        open: whether one of them is an end of what was tried, so that it may be wider.
    """

    low: float
    high: float
    decades: float
    open: bool


def find_width(outcomes: Sequence[Outcome], name: str) -> Width | None:
    """Returns the width of what works around the best of the outcomes along a number.

    The ends are where straight lines between the mean scores on held-out data cross the level of
    one point below the best; None where every training failed.
    """
    if all(one.failed == len(one.trainings) for one in outcomes):
        return None
    log = outcomes[0].arm.box[name].log
    values = np.array([one.point[name] for one in outcomes])
    places = np.log10(values) if log else values
    scores = np.array([one.validation for one in outcomes])
    top = int(scores.argmax())
    level = scores[top] - POINT
    high, upper = cross(places[top:], scores[top:], level)
    low, lower = cross(places[top::-1], scores[top::-1], level)
    ends = (10**low, 10**high) if log else (low, high)
    decades = high - low if log else math.nan
    return Width(float(ends[0]), float(ends[1]), float(decades), upper or lower)


def cross(places: np.ndarray, scores: np.ndarray, level: float) -> tuple[float, bool]:
    """Returns where scores first fall below a level, and whether they never do."""
    below = np.flatnonzero(scores < level)
    if not len(below):
        return float(places[-1]), True
    last = below[0]
    share = (scores[last - 1] - level) / (scores[last - 1] - scores[last])
    return float(places[last - 1] + share * (places[last] - places[last - 1])), False
