"""Long memory: how often a recurrent net learns temporal order, with and without a clip."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

import jaxclip
from experiments.figures import Figure, Series
from experiments.settings import SETTINGS
from experiments.studies.knobs import at
from experiments.study import Arm, Outcome, Study
from experiments.sweep import values
from experiments.tasks.temporal_order import TemporalOrder

LENGTHS = (10, 20, 30, 50, 75)
SOLVED = 0.99


def arms(full: bool) -> Sequence[Arm]:
    """Returns SGD with and without a clip, by length of the sequences."""
    return [arm for length in (LENGTHS if full else LENGTHS[:2]) for arm in of_length(length)]


def of_length(length: int) -> list[Arm]:
    """Returns SGD with and without a clip at one length."""
    setting = SETTINGS["temporal_order"]
    setting = dataclasses.replace(
        setting,
        name=f"length {length}",
        task=TemporalOrder(length),
    )
    clip = setting.config(jaxclip.clip_by_global_norm)
    return [
        Arm("clip_by_global_norm", setting, clip, at(setting, values("limit", setting.norm))),
        Arm("no clip", setting, clip, at(setting, values("limit", jnp.inf))),
    ]


def figures(outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """Returns the share of seeds that solve the problem, against the length."""
    series = []
    for name in dict.fromkeys(outcome.arm.name for outcome in outcomes):
        here = [outcome for outcome in outcomes if outcome.arm.name == name]
        lengths = np.array([length(outcome) for outcome in here])
        series.append(Series(name, lengths, np.array([100 * solved(outcome) for outcome in here])))
    caption = f"Solved: at least {100 * SOLVED:g} % of the held-out sequences are told right."
    return [
        Figure("success", "Success", "length", "seeds that solve it, %", series, caption=caption)
    ]


def length(outcome: Outcome) -> int:
    """Returns the length of the sequences that an outcome is of."""
    assert isinstance(outcome.arm.setting.task, TemporalOrder)
    return outcome.arm.setting.task.length


def solved(outcome: Outcome) -> float:
    """Returns the share of the seeds that solved the problem in any epoch."""
    return float(np.mean(np.max(np.nan_to_num(outcome.history.score), axis=1) >= SOLVED))


def answer(outcomes: Sequence[Outcome]) -> str:
    """Returns the share of the seeds that solve each length."""
    return "Seeds that solve it: " + "; ".join(
        f"{outcome.arm.title} {100 * solved(outcome):.0f} %" for outcome in outcomes
    )


STUDY = Study(
    name="temporal_order",
    question="Up to which length does SGD solve the temporal order problem, with a clip and "
    "without, as in Pascanu et al. 2012?",
    arms=arms,
    figures=figures,
    answer=answer,
)
