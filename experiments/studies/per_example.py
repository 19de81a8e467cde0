"""Bad examples: clipping each example's gradient, the batch's, or none."""

from collections.abc import Sequence

import optax

import jaxclip
from experiments.studies.arms import Arm
from experiments.studies.knobs import AROUND, make_arm, rates, scaled, unclipped_arm
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study
from experiments.training.config import Limit


def arms(full: bool) -> Sequence[Arm]:
    """Returns the three ways, on wrong labels and on a few examples of huge loss."""
    settings = [SETTINGS["mnist_wrong_labels"], SETTINGS["mnist_huge_examples"]]
    return [one for setting in settings for one in of_setting(setting)]


def of_setting(setting: Setting) -> list[Arm]:
    """Returns the three ways on one setting."""
    config = setting.config(no_batch_clip, per_example=jaxclip.value_and_clipped_grad)
    box = {"learning_rate": rates(setting), "limit": scaled(AROUND, setting.norm)}
    return [
        unclipped_arm(setting),
        make_arm("clip_by_global_norm", setting, "the batch"),
        Arm("each example", setting, config, box),
    ]


def no_batch_clip(limit: Limit) -> optax.GradientTransformation:
    """Returns the clip of a batch whose examples are clipped: none."""
    return optax.identity()


STUDY = Study(
    name="per_example",
    question="With wrong labels, or a few examples of huge loss: clip each example, the batch, or "
    "nothing?",
    arms=arms,
)
