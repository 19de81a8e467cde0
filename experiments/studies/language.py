"""What a clip does for a transformer, as people train one: AdamW, a warm-up, a falling rate."""

import dataclasses
from collections.abc import Sequence

from experiments.studies.arms import LIGHT, Arm
from experiments.studies.knobs import GLOBAL, Named, make_arm, rates, unclipped_arm
from experiments.studies.settings import LARGE, SETTINGS, Setting
from experiments.studies.study import Study
from experiments.training.schedules import shape_number


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip, a limit of 1, tuned limits, and a quantile, in float32 and bfloat16."""
    small = [SETTINGS["char_lm"], SETTINGS["char_lm_bfloat16"]]
    settings = [*small, LARGE["gpt"]] if full else small[:1]
    return [arm for setting in settings for arm in of_setting(setting)]


def of_setting(setting: Setting) -> list[Arm]:
    """Returns the arms of a setting; all but the quantile are one program."""
    bare = unclipped_arm(setting, schedule=True)
    tuned = make_arm("clip_by_global_norm", setting, "tuned limit", schedule=True)
    falls = {"last_share": 0.1, "shape": shape_number("cosine")}
    box = {"learning_rate": rates(setting)}
    config = setting.config(GLOBAL, schedule=True)
    quantile = setting.config(Named("clip_by_quantile"))
    return [
        bare,
        Arm("limit of 1", setting, config, box, {"limit": 1.0}),
        tuned,
        dataclasses.replace(tuned, name="tuned limit, falling", fixed=falls),
        Arm("quantile 90 %", setting, quantile, box, {"limit": 0.9}),
    ]


STUDY = Study(
    name="language",
    question="Does a clip help a transformer that is trained by AdamW, with a warm-up and a rate "
    "that falls?",
    arms=arms,
    full=LIGHT,
)
