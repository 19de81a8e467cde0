"""The command `pilot`: the norms of a task's gradients without a clip, and what they suggest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxclip
from experiments import run, train
from experiments.config import trial
from experiments.errors import BadInput
from experiments.options import Pilot
from experiments.settings import SETTINGS, Folders, Setting
from experiments.typed import nearest


def command(options: Pilot) -> None:
    """Does what `pilot` is asked for, and prints the advice."""
    run.use(options.platform)
    if options.task not in SETTINGS:
        raise BadInput(
            f"{options.task} is no task{nearest(options.task, SETTINGS)}; the tasks are "
            f"{', '.join(SETTINGS)}"
        )
    setting = SETTINGS[options.task]
    changes = {
        name: value
        for name in ("epochs", "learning_rate")
        if (value := getattr(options, name)) is not None
    }
    if changes.get("epochs", 1) < 1:
        raise BadInput(f"--epochs is {options.epochs}: give 1 or more")
    print(
        jaxclip.advise(
            norms(dataclasses.replace(setting, **changes), options.folders, options.seed)
        )
    )


def norms(setting: Setting, folders: Folders, seed: int = 0) -> np.ndarray:
    """Returns the norms f32[steps] of a setting's gradients, trained without a clip."""
    config = setting.config(lambda limit: jaxclip.clip_by_global_norm(jnp.inf))
    numbers = trial(seed, setting.learning_rate)
    history = jax.jit(functools.partial(train.train, config))(numbers, setting.data(folders))
    return np.asarray(history.norm).ravel()
