"""What a clip does for each optimizer: a better optimum, or a wider range of learning rates."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import optax

from experiments.studies.arms import Arm
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study

# Each with a usual learning rate.
OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "SGD": (optax.sgd, 0.1),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), 0.01),
    "Adam": (optax.adam, 0.001),
    "AdamW": (functools.partial(optax.adamw, weight_decay=0.01), 0.001),
    "Lion": (optax.lion, 0.0003),
    "Muon": (optax.contrib.muon, 0.01),
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns every optimizer without a clip and with one."""
    settings = ("mnist", "mnist_deep", "cartpole") if full else ("mnist_deep",)
    names = OPTIMIZERS if full else ("SGD", "Adam")
    return [arm for name in settings for optimizer in names for arm in pair(name, optimizer)]


def pair(setting: str, name: str) -> list[Arm]:
    """Returns an optimizer in a setting, without a clip and with one; they are one program."""
    here = with_optimizer(SETTINGS[setting], name)
    bare = unclipped_arm(here, f"{name}, no clip")
    clipped = make_arm("clip_by_global_norm", here, f"{name}, clip")
    return [bare, dataclasses.replace(clipped, against=bare.name)]


def with_optimizer(setting: Setting, name: str) -> Setting:
    """Returns a setting with another optimizer."""
    optimizer, rate = OPTIMIZERS[name]
    return dataclasses.replace(setting, optimizer=optimizer, learning_rate=rate)


STUDY = Study(
    name="optimizers",
    question="Does a clip raise the best that an optimizer reaches, or widen the range of learning "
    "rates that work?",
    arms=arms,
)
