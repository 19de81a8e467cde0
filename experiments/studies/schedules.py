"""How should the limit go over the training: constant, warmed up, falling, or found by itself?"""

import functools
from collections.abc import Sequence

import jaxclip
from experiments.pages.series import Figure
from experiments.studies.knobs import AROUND, at_learning_rate, make_arm, unclipped_arm
from experiments.studies.page import comparison_figure, epoch_figure, knob_figure
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Arm, Outcome, Study, best, verdict
from experiments.sweeps.grid import values, zipped
from experiments.training.schedules import shape_number


def arms(full: bool) -> Sequence[Arm]:
    """Returns constant, scheduled and adaptive limits, five points each."""
    names = ("mnist_deep", "char_lm") if full else ("mnist_deep",)
    return [one for name in names for one in arms_of_setting(SETTINGS[name])]


def arms_of_setting(setting: Setting) -> list[Arm]:
    """Returns the arms of one setting."""
    scheduled = functools.partial(scheduled_arm, setting)
    return [
        unclipped_arm(setting),
        scheduled("constant", "linear", 1.0),
        scheduled("warm-up, 0.1 to 1 in a tenth", "linear", 1.0, first=0.1, by=0.1),
        scheduled("linear, 1 to 0.1", "linear", 0.1),
        scheduled("cosine, 1 to 0.1", "cosine", 0.1),
        scheduled("step, 1 to 0.1 at the half", "step", 0.1, by=0.5),
        *(make_arm(method, setting) for method in ("autoclip", "clip_by_quantile", "zclip")),
    ]


def scheduled_arm(
    setting: Setting,
    name: str,
    shape: str,
    last: float,
    first: float = 1.0,
    by: float = 1.0,
) -> Arm:
    """Returns the arm whose limit goes from `first` to `last` times each of the five limits."""
    limits = [setting.norm * factor for factor in AROUND]
    grid = zipped(
        values("limit", *(first * limit for limit in limits)),
        values("last_limit", *(last * limit for limit in limits)),
        values("by", *(by for _ in limits)),
        values("shape", *(shape_number(shape) for _ in limits)),
    )
    config = setting.config(jaxclip.clip_by_global_norm, schedule=True)
    return Arm(name, setting, config, at_learning_rate(setting, grid))


def figures(outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """Returns the best of every arm, how it got there, and how much the limit matters."""
    limits = [one for one in outcomes if one.arm.knob == "limit"]
    return [
        comparison_figure(best(outcomes), "best", "Each schedule at its best limit"),
        epoch_figure(best(outcomes), "epochs", "The way there"),
        knob_figure(limits, "limits", "Accuracy against the first limit", "first limit"),
    ]


STUDY = Study(
    name="schedules",
    question="Does a schedule of the limit, or a limit that adapts, beat a constant one when each "
    "is tuned over as many points?",
    arms=arms,
    figures=figures,
    answer=verdict,
)
