"""Sensitivity to the limit: accuracy against the limit over five decades."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.pages.series import Figure
from experiments.studies.knobs import KNOBS, at_learning_rate, make_arm
from experiments.studies.page import knob_figure
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Arm, Outcome, Study, best
from experiments.sweeps.grid import values

METHODS = (
    "clip_by_global_norm",
    "smooth_clip_by_global_norm",
    "normalize_by_global_norm",
    "clip_by_leaf_norm",
    "clip_by_unit_norm",
    "clip_by_value",
    "u_clip",
)
FORGIVEN = 0.01


def arms(full: bool) -> Sequence[Arm]:
    """Returns the methods with a limit, over five decades around the usual norm."""
    setting = SETTINGS["mnist_deep"]
    decades = np.logspace(-3, 2, 11 if full else 6)
    chosen = METHODS if full else METHODS[:4]
    return [spread_arm(make_arm(method, setting), method, decades) for method in chosen]


def spread_arm(one: Arm, method: str, decades: np.ndarray) -> Arm:
    """Returns an arm with a grid over decades of its norm, as its method measures it."""
    share = KNOBS[method].share or 1.0
    limits = values("limit", *(float(share * one.setting.norm * decade) for decade in decades))
    return dataclasses.replace(one, grid=at_learning_rate(one.setting, limits))


def figures(outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """Returns accuracy against limit."""
    return [knob_figure(outcomes, "limits", "Accuracy against the limit", "limit")]


def tolerance(outcomes: Sequence[Outcome]) -> str:
    """Returns over how many decades each method stays within a point of its best."""
    widths = []
    for top in best(outcomes):
        here = [one for one in outcomes if one.arm.title == top.arm.title]
        good = [one.point["limit"] for one in here if one.mean >= top.mean - FORGIVEN]
        widths.append((np.log10(max(good) / min(good)), top))
    widths.sort(key=lambda pair: -pair[0])
    return "Within one point of its own best over this many decades of the limit: " + "; ".join(
        f"{top.arm.name} {width:.1f} (best {100 * top.mean:.2f} %)" for width, top in widths
    )


STUDY = Study(
    name="sensitivity",
    question="Which method forgives a bad limit?",
    arms=arms,
    figures=figures,
    answer=tolerance,
)
