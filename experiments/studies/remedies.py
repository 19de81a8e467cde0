"""What to do about bad batches and overflows: nothing, a clip, or to skip the step."""

import dataclasses
from collections.abc import Sequence

from experiments.studies import stress
from experiments.studies.arms import LIGHT, Arm
from experiments.studies.knobs import unclipped_arm
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.spikes import forgiving_arm, skip_arm
from experiments.studies.study import Study

METHODS = ("clip_by_global_norm", "zclip", "adagc", "spam_clip")
SKIPS = ("skip_on_spike", "skip_nonfinite")
EVERY = 97  # steps: no multiple of what an epoch has


def arms(full: bool) -> Sequence[Arm]:
    """Returns every remedy, on corrupted batches and on a loss scale that overflows."""
    overflow = dataclasses.replace(
        SETTINGS["mnist_bfloat16"], name="overflow", disturb=stress.Overflow(every=EVERY)
    )
    settings = [SETTINGS["mnist_bad_batches"], overflow]
    if full:
        momentum = dataclasses.replace(
            SETTINGS["fashion_residual"],
            name="residual_bad_batches",
            corrupt=stress.BadBatches(every=EVERY, factor=100.0),
        )
        settings.append(momentum)
    return [arm for setting in settings for arm in of_setting(setting)]


def of_setting(setting: Setting) -> list[Arm]:
    """Returns every remedy in one setting."""
    return [
        unclipped_arm(setting),
        *(forgiving_arm(setting, method) for method in METHODS),
        *(skip_arm(setting, name) for name in SKIPS),
    ]


STUDY = Study(
    name="remedies",
    question="What helps against corrupted batches, and a loss scale that overflows: a clip, or to "
    "skip the step?",
    arms=arms,
    full=LIGHT,
)
