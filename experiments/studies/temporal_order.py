"""Long memory: how often a recurrent net learns temporal order, with and without a clip."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from experiments.pages.series import Figure, Series
from experiments.studies.arms import FULL, QUICK, Arm
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.search import Finding
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Study
from experiments.tasks.temporal_order import TemporalOrder
from experiments.training.train import History

LENGTHS = (10, 20, 30, 50)
SOLVED = 0.99


def arms(full: bool) -> Sequence[Arm]:
    """Returns SGD with and without a clip, by length of the sequences."""
    return [arm for length in (LENGTHS if full else LENGTHS[:2]) for arm in of_length(length)]


def of_length(length: int) -> list[Arm]:
    """Returns SGD with and without a clip at one length."""
    setting = dataclasses.replace(
        SETTINGS["temporal_order"],
        name=f"length {length}",
        task=TemporalOrder(length),
        # To learn nothing is what the study counts, and no failure.
        floor=0.0,
    )
    return [unclipped_arm(setting), make_arm("clip_by_global_norm", setting, "with a clip")]


def solved(history: History) -> float:
    """Returns whether a training solves the problem in any epoch, as 1 or 0."""
    return float(np.max(np.nan_to_num(history.score)) >= SOLVED)


def figures(findings: Sequence[Finding]) -> Sequence[Figure]:
    """Returns the share of seeds that solve the problem."""
    series = []
    for name in dict.fromkeys(one.arm.name for one in findings):
        here = [one for one in findings if one.arm.name == name]
        lengths = np.array([length(one) for one in here])
        series.append(Series(name, lengths, np.array([100 * share(one) for one in here])))
    caption = f"Solved: at least {100 * SOLVED:g} % accuracy on the test sequences."
    return [
        Figure("success", "Success", "length", "seeds that solve it, %", series, caption=caption)
    ]


def length(finding: Finding) -> int:
    """Returns the length of the sequences that a finding is of."""
    assert isinstance(finding.arm.setting.task, TemporalOrder)
    return finding.arm.setting.task.length


def share(finding: Finding) -> float:
    """Returns the share of the seeds that solve the problem at the chosen point."""
    return float(np.mean(finding.chosen.measure("solved")))


def answer(findings: Sequence[Finding]) -> str:
    """Returns up to which length each arm solves it in most seeds, and the shares."""
    longest = {
        name: max(
            (length(one) for one in findings if one.arm.name == name and share(one) > 0.5),
            default=-math.inf,
        )
        for name in dict.fromkeys(one.arm.name for one in findings)
    }
    first = "; ".join(
        f"{name} in none of them" if most < 0 else f"{name} up to length {most}"
        for name, most in longest.items()
    )
    shares = "; ".join(f"{one.arm.title} {100 * share(one):.0f} %" for one in findings)
    return f"More than half of the seeds solve it {first}. Seeds that solve it: {shares}."


STUDY = Study(
    name="temporal_order",
    question="Up to which length does SGD solve the temporal order problem, with a clip and "
    "without, as in Pascanu et al. 2012?",
    arms=arms,
    measures={"solved": solved},
    figures=figures,
    answer=answer,
    # Whether it is solved depends on the seed, more than elsewhere.
    full=dataclasses.replace(FULL, tuning_seeds=4),
    quick=dataclasses.replace(QUICK, tuning_seeds=2),
)
