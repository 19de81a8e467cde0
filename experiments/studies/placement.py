"""Where the clip belongs: before the optimizer, after it, or nowhere."""

import dataclasses
from collections.abc import Sequence

from experiments.studies.arms import Arm, Range
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.optimizers import OPTIMIZERS, with_optimizer
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Study


def arms(full: bool) -> Sequence[Arm]:
    """Returns each optimizer with the clip before it, after it, and without one."""
    names = OPTIMIZERS if full else ("momentum", "Adam")
    return [arm for name in names for arm in arms_of_optimizer(name)]


def arms_of_optimizer(name: str) -> list[Arm]:
    """Returns an optimizer with the clip before it, after it, and without one."""
    setting = with_optimizer(SETTINGS["mnist_heavy_tails"], name)
    bare = unclipped_arm(setting, f"{name}, no clip")
    before = make_arm("clip_by_global_norm", setting, f"{name}, clip before")
    after = make_arm("clip_by_global_norm", setting, f"{name}, clip after", clip_last=True)
    # Steps are as large as the learning rate makes them, whatever the gradient is.
    steps = {**after.box, "limit": Range(0.01, 10.0)}
    clipped = (before, dataclasses.replace(after, box=steps))
    return [bare, *(dataclasses.replace(arm, against=bare.name) for arm in clipped)]


STUDY = Study(
    name="placement",
    question="Does the clip belong before the moments, or an update that is a sign or "
    "orthogonalized, or after it?",
    arms=arms,
)
