"""Where the clip belongs: before the optimizer, after it, or nowhere."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import optax

from experiments.studies.arms import Arm, Range
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Study

# Each with a usual learning rate.
OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "SGD": (optax.sgd, 0.1),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), 0.01),
    "Adam": (optax.adam, 0.001),
    "signs": (optax.sign_sgd, 0.001),
    "Muon": (optax.contrib.muon, 0.01),
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns each optimizer with the clip before it, after it, and without one."""
    names = OPTIMIZERS if full else ("momentum", "Adam")
    return [arm for name in names for arm in arms_of_optimizer(name)]


def arms_of_optimizer(name: str) -> list[Arm]:
    """Returns an optimizer with the clip before it, after it, and without one."""
    optimizer, rate = OPTIMIZERS[name]
    setting = dataclasses.replace(
        SETTINGS["mnist_heavy_tails"], optimizer=optimizer, learning_rate=rate
    )
    bare = unclipped_arm(setting, f"{name}, no clip")
    before = make_arm("clip_by_global_norm", setting, f"{name}, clip before")
    after = make_arm("clip_by_global_norm", setting, f"{name}, clip after", clip_last=True)
    # Steps are as large as the learning rate makes them, whatever the gradient is.
    steps = {**after.box, "limit": Range(0.01, 10.0)}
    clipped = (before, dataclasses.replace(after, box=steps))
    return [bare, *(dataclasses.replace(arm, against=bare.name) for arm in clipped)]


STUDY = Study(
    name="placement",
    question="Does the clip belong before momentum, Adam, or an update that is a sign or "
    "orthogonalized, or after it?",
    arms=arms,
)
