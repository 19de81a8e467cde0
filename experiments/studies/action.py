"""How often each method acts, over the training."""

import functools
from collections.abc import Sequence

import numpy as np

import jaxclip
from experiments.pages.series import Figure, Series
from experiments.studies.arms import Arm
from experiments.studies.effects import by_setting
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.search import Finding
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Study
from experiments.training.train import History

PARTS = 10  # of a training
FEW = ("clip_by_global_norm", "autoclip", "zclip", "adagc")


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip and the methods, each tuned."""
    settings = ("mnist_deep", "cartpole") if full else ("mnist_deep",)
    methods = list(jaxclip.named()) if full else FEW
    return [
        arm
        for name in settings
        for arm in (
            unclipped_arm(SETTINGS[name]),
            *(make_arm(method, SETTINGS[name]) for method in methods),
        )
    ]


def acts(history: History, part: int) -> float:
    """Returns the share of the steps of one part of a training in which the clip acts."""
    steps = np.array_split(np.ravel(np.asarray(history.clipped)) > 0, PARTS)
    return float(np.mean(steps[part]))


def figures(findings: Sequence[Finding]) -> Sequence[Figure]:
    """Returns how often each method acts, a figure a setting."""
    return [
        Figure(
            f"action-{setting}",
            f"{setting}: how often each method acts",
            "part of the training, %",
            "steps clipped, %",
            [over_time(one) for one in here],
            caption="Mean of the seeds at the chosen point.",
        )
        for setting, here in by_setting(findings).items()
    ]


def over_time(finding: Finding) -> Series:
    """Returns how often a method acts in every part of the training."""
    shares = [100 * finding.chosen.measure(measure_name(part)).mean() for part in range(PARTS)]
    middles = 100 * (np.arange(PARTS) + 0.5) / PARTS
    return Series(finding.arm.name, middles, np.array(shares))


def measure_name(part: int) -> str:
    """Returns the name of the measure of one part."""
    return f"acts in part {part + 1}"


def answer(findings: Sequence[Finding]) -> str:
    """Returns how often each method acts in the first tenth of the training and in the last."""
    first, last = measure_name(0), measure_name(PARTS - 1)
    return "\n".join(
        f"Steps clipped in the first tenth and in the last, on {setting}: "
        + "; ".join(
            f"{one.arm.name} {100 * one.chosen.measure(first).mean():.0f} and "
            f"{100 * one.chosen.measure(last).mean():.0f} %"
            for one in here
        )
        + "."
        for setting, here in by_setting(findings).items()
    )


STUDY = Study(
    name="action",
    question="How often does each method act over the training, where it is tuned?",
    arms=arms,
    measures={measure_name(part): functools.partial(acts, part=part) for part in range(PARTS)},
    figures=figures,
    answer=answer,
)
