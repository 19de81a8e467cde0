"""Bad examples: clipping each example's gradient, the batch's, or none."""

from collections.abc import Sequence

import optax

import jaxclip
from experiments.pages.series import Figure
from experiments.studies.knobs import at_learning_rate, unclipped_arm
from experiments.studies.page import comparison_figure, epoch_figure, knob_figure
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Arm, Outcome, Study, best, by_setting, verdict
from experiments.sweeps.grid import values

LIMITS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def arms(full: bool) -> Sequence[Arm]:
    """Returns the three ways, on wrong labels and on a few examples of huge loss."""
    settings = [SETTINGS["mnist_wrong_labels"], SETTINGS["mnist_huge_examples"]]
    return [one for setting in settings for one in of_setting(setting)]


def of_setting(setting: Setting) -> list[Arm]:
    """Returns the three ways on one setting."""
    examples = setting.config(
        lambda limit: optax.identity(), per_example=jaxclip.value_and_clipped_grad
    )
    grid = at_learning_rate(setting, values("limit", *(setting.norm * limit for limit in LIMITS)))
    return [
        unclipped_arm(setting),
        Arm("batch", setting, setting.config(jaxclip.clip_by_global_norm), grid),
        Arm("per example", setting, examples, grid),
    ]


def figures(outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """Returns the three ways at their best, setting by setting, and against the limit."""
    made = [comparison_figure(best(outcomes), "best", "Each at its best limit")]
    for setting, here in by_setting(outcomes).items():
        limited = [one for one in here if one.arm.knob]
        made += [
            knob_figure(limited, f"limits-{setting}", f"{setting}: against the limit", "limit"),
            epoch_figure(best(here), f"epochs-{setting}", f"{setting}: the way there"),
        ]
    return made


STUDY = Study(
    name="per_example",
    question="With wrong labels, or a few examples of huge loss: clip each example, the batch, or "
    "nothing?",
    arms=arms,
    figures=figures,
    answer=verdict,
    seeds=10,
)
