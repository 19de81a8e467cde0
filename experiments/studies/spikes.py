"""How a training gets over a spike of the gradient, and over one that is not a number."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

import jaxclip
from experiments.pages.series import Figure, Series
from experiments.studies import stress
from experiments.studies.arms import Arm
from experiments.studies.effects import by_setting
from experiments.studies.knobs import GLOBAL, Named, make_arm, rates, unclipped_arm
from experiments.studies.search import Finding
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study
from experiments.training.train import History

EVERY = 200
FACTOR = 1000.0
AROUND = (-10, -1, 0, 1, 2, 3, 5, 10, 20, 50, 100)  # steps after a spike

METHODS = (
    "clip_by_global_norm",
    "clip_by_value",
    "autoclip",
    "clip_by_quantile",
    "zclip",
    "clip_by_history",
    "adagc",
    "spam_clip",
    "drop_spikes",
)
Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]
SKIPS: Mapping[str, Wrap] = {
    "skip_nonfinite": jaxclip.skip_nonfinite,
    "skip_on_spike": jaxclip.skip_on_spike,
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns clips and wrappers, on spikes and on nans."""
    calm = SETTINGS["mnist"]
    spiky = dataclasses.replace(
        calm, name="spikes", disturb=stress.Spikes(every=EVERY, factor=FACTOR)
    )
    broken = dataclasses.replace(calm, name="nans", disturb=stress.Nans(every=EVERY))
    return [
        arm
        for setting in ([spiky, broken, calm] if full else [spiky, broken])
        for arm in (
            unclipped_arm(setting),
            *(forgiving_arm(setting, method) for method in METHODS),
            *(skip_arm(setting, name) for name in SKIPS),
        )
    ]


@dataclasses.dataclass(frozen=True)
class Forgiving(Named):
    """A named method that makes zeros of what is not finite."""

    def __call__(self, limit: Any, **further: Any) -> optax.GradientTransformation:
        """Returns the method with its number."""
        return super().__call__(limit, nonfinite="zero", **further)


def forgiving_arm(setting: Setting, method: str) -> Arm:
    """Returns the arm of a clip."""
    arm = make_arm(method, setting)
    return dataclasses.replace(arm, config=dataclasses.replace(arm.config, clip=Forgiving(method)))


def skip_arm(setting: Setting, name: str) -> Arm:
    """Returns the arm of a wrapper around the optimizer."""

    def optimizer(learning_rate: jax.Array) -> optax.GradientTransformation:
        return SKIPS[name](setting.optimizer(learning_rate))

    config = setting.config(GLOBAL, optimizer=optimizer)
    return Arm(name, setting, config, {"learning_rate": rates(setting)}, {"limit": np.inf})


def loss_after(history: History, steps: int) -> float:
    """Returns the median loss so many steps after a spike, over all spikes of a training."""
    losses = np.ravel(np.asarray(history.loss, np.float64))
    at = np.arange(EVERY - 1, len(losses) - max(AROUND), EVERY)
    return float(np.median(np.nan_to_num(losses[at + steps], nan=np.inf)))


def figures(findings: Sequence[Finding]) -> Sequence[Figure]:
    """Returns how the loss comes back after a spike, a figure a setting."""
    return [
        Figure(
            f"recovery-{setting}",
            f"{setting}: the loss around them",
            "steps after",
            "loss",
            [recovery(one) for one in here],
            log_y=True,
            caption="Median over all of them and over the seeds, at the chosen point.",
        )
        for setting, here in by_setting(findings).items()
    ]


def recovery(finding: Finding) -> Series:
    """Returns the median loss before a spike and after it."""
    medians = [np.median(finding.chosen.measure(f"loss {steps:+d}")) for steps in AROUND]
    return Series(finding.arm.name, np.array(AROUND), np.array(medians))


STUDY = Study(
    name="spikes",
    question=f"Which clip gets a training over a gradient {FACTOR:g} times too large, or nan, "
    f"every {EVERY} steps?",
    arms=arms,
    measures={f"loss {steps:+d}": functools.partial(loss_after, steps=steps) for steps in AROUND},
    figures=figures,
)
