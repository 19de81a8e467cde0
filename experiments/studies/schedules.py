"""How the limit should go over the training, beside a learning rate that stays or falls."""

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.studies.arms import Arm
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study
from experiments.training.schedules import shape_number

# The limit is that of the peak; from there, or up to there, it goes by these.
LIMITS: Mapping[str, Mapping[str, float]] = {
    "constant limit": {},
    "warm-up of the limit in a tenth": {"first_share": 0.1, "by": 0.1},
    "limit falls on a line": {"last_share": 0.1},
    "limit falls on a cosine": {"last_share": 0.1, "shape": shape_number("cosine")},
    "limit falls at the half": {"last_share": 0.1, "shape": shape_number("step"), "by": 0.5},
}
RATES: Mapping[str, Mapping[str, float]] = {
    "constant rate": {},
    "falling rate": {"last_rate": 0.0, "rate_shape": shape_number("cosine")},
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns every way of the limit beside every way of the rate; all are one program."""
    settings = ("mnist_deep", "cartpole") if full else ("mnist_deep",)
    limits = LIMITS if full else dict(list(LIMITS.items())[::2])
    return [
        arm
        for name in settings
        for rate, numbers in RATES.items()
        for arm in arms_of_rate(SETTINGS[name], rate, numbers, limits)
    ]


def arms_of_rate(
    setting: Setting,
    rate: str,
    numbers: Mapping[str, float],
    limits: Mapping[str, Mapping[str, float]],
) -> list[Arm]:
    """Returns every way of the limit beside one way of the rate.

    No clip is what a constant limit is compared with, and that is what others are compared with.
    """
    bare = unclipped_arm(setting, f"no clip, {rate}", schedule=True, rate_schedule=True)
    limited = make_arm("clip_by_global_norm", setting, schedule=True, rate_schedule=True)
    made = [dataclasses.replace(bare, fixed={**bare.fixed, **numbers})]
    for name, way in limits.items():
        against = bare.name if not way else f"constant limit, {rate}"
        arm = dataclasses.replace(limited, name=f"{name}, {rate}", against=against)
        made.append(dataclasses.replace(arm, fixed={**way, **numbers}))
    return made


STUDY = Study(
    name="schedules",
    question="Does a limit that falls over the training help, beside a learning rate that falls?",
    arms=arms,
    lead="constant limit, falling rate",
)
