"""Where the clip belongs beside accumulated gradients: every micro-batch, or their mean."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import optax

import jaxclip
from experiments.studies.arms import NO_CLIP, Arm
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study
from experiments.training.config import Limit

MICRO = 4  # batches that are accumulated


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip, a clip of every micro-batch, and one of their mean."""
    names = ("mnist_heavy_tails", "mnist_bad_batches", "mnist") if full else ("mnist_bad_batches",)
    return [arm for name in names for arm in of_setting(SETTINGS[name])]


def of_setting(setting: Setting) -> list[Arm]:
    """Returns the arms of a setting, in batches a quarter as large."""
    setting = dataclasses.replace(
        setting,
        batch_size=setting.batch_size // MICRO,
        optimizer=functools.partial(accumulate, setting.optimizer),
    )
    micro = make_arm("clip_by_global_norm", setting, "every micro-batch")
    # The optimizer is within the clip, which lets the accumulated gradient through once in four.
    mean = dataclasses.replace(
        micro,
        name="their mean",
        config=setting.config(clip_mean, optimizer=SETTINGS[setting.name].optimizer),
    )
    return [unclipped_arm(setting), micro, dataclasses.replace(mean, against=NO_CLIP)]


def accumulate(
    optimizer: Callable[..., optax.GradientTransformation], rate: Limit
) -> optax.GradientTransformation:
    """Returns an optimizer that takes a step of the mean of every four gradients."""
    return optax.MultiSteps(optimizer(rate), MICRO).gradient_transformation()


def clip_mean(limit: Limit) -> optax.GradientTransformation:
    """Returns the clip of the mean of every four gradients; zero in between."""
    clip = jaxclip.clip_by_global_norm(limit)
    return optax.MultiSteps(clip, MICRO).gradient_transformation()


STUDY = Study(
    name="accumulation",
    question="Where gradients are accumulated: clip every micro-batch, or their mean?",
    arms=arms,
)
