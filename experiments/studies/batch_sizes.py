"""Whether a clip matters more for small batches, whose gradients are noisier."""

import dataclasses
import math
from collections.abc import Sequence

from experiments.studies.arms import Arm
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Study

SIZES = (16, 64, 256, 1024)
EPOCHS = 2


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip and a clip at every batch size, with as many passes over the data."""
    names = ("mnist", "mnist_deep") if full else ("mnist",)
    return [
        arm
        for name in names
        for size in (SIZES if full else SIZES[1:3])
        for arm in pair(name, size)
    ]


def pair(name: str, size: int) -> list[Arm]:
    """Returns no clip and a clip at one batch size; the usual rate goes by its root."""
    setting = SETTINGS[name]
    setting = dataclasses.replace(
        setting,
        name=f"{name}, batches of {size}",
        batch_size=size,
        epochs=EPOCHS,
        learning_rate=setting.learning_rate * math.sqrt(size / setting.batch_size),
    )
    return [unclipped_arm(setting), make_arm("clip_by_global_norm", setting, "a clip")]


STUDY = Study(
    name="batch_sizes",
    question="Does a clip matter more where batches are small?",
    arms=arms,
)
