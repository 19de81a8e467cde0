"""Long memory: how often a recurrent net learns temporal order, with and without a clip."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxclip
from experiments.pages.series import Figure, Series
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Arm, Outcome, Study, best
from experiments.sweeps.grid import product, values
from experiments.tasks.temporal_order import TemporalOrder

LENGTHS = (10, 20, 30, 50)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SOLVED = 0.99


def arms(full: bool) -> Sequence[Arm]:
    """Returns SGD with and without a clip, by length of the sequences."""
    lengths, rates = (LENGTHS, RATES) if full else (LENGTHS[:2], RATES[2:5])
    return [arm for length in lengths for arm in arms_of_length(length, rates)]


def arms_of_length(length: int, rates: Sequence[float]) -> list[Arm]:
    """Returns SGD with and without a clip at one length, over learning rates."""
    setting = SETTINGS["temporal_order"]
    setting = dataclasses.replace(
        setting,
        name=f"length {length}",
        task=TemporalOrder(length),
    )
    clip = setting.config(jaxclip.clip_by_global_norm)
    grid = values("learning_rate", *rates)
    return [
        Arm("clip_by_global_norm", setting, clip, product(grid, values("limit", setting.norm))),
        Arm("no clip", setting, clip, product(grid, values("limit", jnp.inf)), knob=""),
    ]


def figures(outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """Returns the share of seeds that solve the problem, each at its best learning rate."""
    series = []
    for name in dict.fromkeys(outcome.arm.name for outcome in outcomes):
        here = [outcome for outcome in best_by_success(outcomes) if outcome.arm.name == name]
        lengths = np.array([length(outcome) for outcome in here])
        shares = np.array([100 * success_rate(outcome.history.score) for outcome in here])
        series.append(Series(name, lengths, shares))
    caption = f"Solved: at least {100 * SOLVED:g} % accuracy on the test sequences."
    return [
        Figure("success", "Success", "length", "seeds that solve it, %", series, caption=caption)
    ]


def best_by_success(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Returns the outcome of every arm that most seeds solve the problem in, by validation."""
    return best(outcomes, by=lambda outcome: success_rate(outcome.history.validation))


def length(outcome: Outcome) -> int:
    """Returns the length of the sequences that an outcome is of."""
    assert isinstance(outcome.arm.setting.task, TemporalOrder)
    return outcome.arm.setting.task.length


def success_rate(scores: Any) -> float:
    """Returns the share of seeds whose scores [seeds, epochs] solve the problem in any epoch."""
    return float(np.mean(np.max(np.nan_to_num(scores), axis=1) >= SOLVED))


def answer(outcomes: Sequence[Outcome]) -> str:
    """Returns the share of the seeds that solve each length."""
    return "Seeds that solve it: " + "; ".join(
        f"{one.arm.title} {100 * success_rate(one.history.score):.0f} %"
        for one in best_by_success(outcomes)
    )


STUDY = Study(
    name="temporal_order",
    question="Up to which length does SGD solve the temporal order problem, with a clip and "
    "without, as in Pascanu et al. 2012?",
    arms=arms,
    figures=figures,
    answer=answer,
)
