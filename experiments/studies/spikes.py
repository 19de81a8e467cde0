"""How a training gets over a spike of the gradient, and over one that is not a number."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from experiments.pages.series import Figure, Series
from experiments.studies import stress
from experiments.studies.page import comparison_figure
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Arm, Outcome, Study, best, by_setting, verdict

EVERY = 200
FACTOR = 1000.0
BEFORE, AFTER = 20, 100

Clip = Callable[[Any], optax.GradientTransformation]
CLIPS: dict[str, Clip] = {
    "no clip": lambda limit: jaxclip.clip_by_global_norm(jnp.inf),
    "clip_by_global_norm": lambda limit: jaxclip.clip_by_global_norm(limit, nonfinite="zero"),
    "clip_by_value": lambda limit: jaxclip.clip_by_value(limit, nonfinite="zero"),
    "autoclip": lambda limit: jaxclip.autoclip(50.0, nonfinite="zero"),
    "clip_by_quantile": lambda limit: jaxclip.clip_by_quantile(nonfinite="zero"),
    "zclip": lambda limit: jaxclip.zclip(limit=None, nonfinite="zero"),
    "clip_by_history": lambda limit: jaxclip.clip_by_history(nonfinite="zero"),
    "drop_spikes": lambda limit: jaxclip.drop_spikes(nonfinite="zero"),
}
# The limit as a share of the usual norm; all other methods have their defaults.
SHARES = {"clip_by_global_norm": 1.0, "clip_by_value": 0.01}
SKIPS = {
    "skip_nonfinite": jaxclip.skip_nonfinite,
    "skip_on_spike": jaxclip.skip_on_spike,
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns clips and wrappers with their defaults, on spikes and on nans."""
    calm = SETTINGS["mnist"]
    spiky = dataclasses.replace(
        calm, name="spikes", disturb=stress.Spikes(every=EVERY, factor=FACTOR)
    )
    broken = dataclasses.replace(calm, name="nans", disturb=stress.Nans(every=EVERY))
    return [
        arm
        for setting in ([spiky, broken, calm] if full else [spiky, broken])
        for arm in (
            *(clip_arm(setting, name, clip) for name, clip in CLIPS.items()),
            *(skip_arm(setting, name) for name in SKIPS),
        )
    ]


def clip_arm(setting: Setting, name: str, clip: Clip) -> Arm:
    """Returns the arm of a clip."""
    grid = single_point(setting, SHARES.get(name, 1.0))
    return Arm(name, setting, setting.config(clip), grid, "limit" if name in SHARES else "")


def skip_arm(setting: Setting, name: str) -> Arm:
    """Returns the arm of a wrapper around the optimizer."""

    def optimizer(learning_rate: jax.Array) -> optax.GradientTransformation:
        return SKIPS[name](setting.optimizer(learning_rate))

    config = setting.config(lambda limit: jaxclip.clip_by_global_norm(jnp.inf), optimizer=optimizer)
    return Arm(name, setting, config, single_point(setting), knob="")


def single_point(setting: Setting, share: float = 1.0) -> Sequence[dict[str, float]]:
    """Returns the grid of one point, whose limit is a share of the usual norm."""
    return [{"limit": share * setting.norm, "learning_rate": setting.learning_rate}]


def figures(outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """Returns how the loss comes back after a spike, a figure a setting."""
    return [
        figure
        for setting, here in by_setting(outcomes).items()
        for figure in (
            Figure(
                f"recovery-{setting}",
                f"{setting}: the loss around them",
                "steps after",
                "loss",
                [recovery(outcome) for outcome in here],
                log_y=True,
                caption="Median over all of them and all seeds.",
            ),
            comparison_figure(best(here), f"best-{setting}", f"{setting}: accuracy in the end"),
        )
    ]


def recovery(outcome: Outcome) -> Series:
    """Returns the median loss from `BEFORE` steps before a spike until `AFTER` steps after it."""
    losses = np.asarray(outcome.history.loss, np.float64)
    losses = losses.reshape(len(losses), -1)
    at = np.arange(EVERY - 1, losses.shape[1] - AFTER, EVERY)
    around = np.arange(-BEFORE, AFTER)
    windows = losses[:, at[:, None] + around]
    median = np.median(np.where(np.isnan(windows), np.inf, windows), axis=(0, 1))
    return Series(outcome.arm.name, around, median, mode="lines")


STUDY = Study(
    name="spikes",
    question=f"Which clip gets a training over a gradient {FACTOR:g} times too large, or nan, "
    f"every {EVERY} steps?",
    arms=arms,
    figures=figures,
    answer=verdict,
)
