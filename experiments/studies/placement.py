"""Where the clip belongs: before the optimizer or after it."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import optax

import jaxclip
from experiments.pages.series import Figure
from experiments.studies.page import comparison_figure, knob_figure
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Arm, Outcome, Study, best, verdict
from experiments.sweeps.grid import product, values

OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "sgd": (optax.sgd, 0.1),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), 0.01),
    "adam": (optax.adam, 0.001),
    "sign": (optax.sign_sgd, 0.001),
    "muon": (optax.contrib.muon, 0.01),
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns each optimizer with the clip before it and after it, over the same seven limits."""
    setting = SETTINGS["mnist_heavy_tails"]
    limits = np.logspace(-4, 2, 7) if full else np.logspace(-3, 1, 3)
    names = OPTIMIZERS if full else ("momentum", "adam")
    grid = values("limit", *(float(setting.norm * limit) for limit in limits))
    return [
        Arm(
            f"{name}, clip {'after' if last else 'before'}",
            setting,
            setting.config(
                jaxclip.clip_by_global_norm, optimizer=OPTIMIZERS[name][0], clip_last=last
            ),
            product(values("learning_rate", OPTIMIZERS[name][1]), grid),
        )
        for name in names
        for last in (False, True)
    ]


def figures(outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """Returns both places at their best limit, and against the limit."""
    return [
        comparison_figure(best(outcomes), "best", "Each place at its best limit"),
        knob_figure(outcomes, "limits", "Accuracy against the limit", "limit"),
    ]


STUDY = Study(
    name="placement",
    question="Does the clip belong before momentum, Adam, or an update that is a sign or "
    "orthogonalised, or after it?",
    arms=arms,
    figures=figures,
    answer=verdict,
)
