"""The command `pilot`: the norms of a task's gradients without a clip, and what they suggest."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from experiments import run, train
from experiments.config import Config, Limit, Trial, trial
from experiments.data import Data
from experiments.errors import BadInput
from experiments.options import Pilot
from experiments.settings import SETTINGS, Setting
from experiments.typed import nearest


def command(options: Pilot) -> None:
    """Does what `pilot` is asked for, and prints the advice."""
    run.use(options.platform)
    setting = chosen(options)
    numbers = trial(options.seed, setting.learning_rate)
    print(pilot(setting.config(unlimited), numbers, setting.data(options.folders)))


def chosen(options: Pilot) -> Setting:
    """Returns the setting that the options mean."""
    if options.task not in SETTINGS:
        raise BadInput(
            f"{options.task} is no task{nearest(options.task, SETTINGS)}; the tasks are "
            f"{', '.join(SETTINGS)}"
        )
    if options.epochs is not None and options.epochs < 1:
        raise BadInput(f"--epochs is {options.epochs}: give 1 or more")
    if options.learning_rate is not None and not 0 <= options.learning_rate < math.inf:
        raise BadInput(f"--learning-rate is {options.learning_rate}: give a number of 0 or more")
    if not -(2**31) <= options.seed < 2**31:
        raise BadInput(f"--seed is {options.seed}: give a number of 32 bits")
    changes = {
        name: value
        for name in ("epochs", "learning_rate")
        if (value := getattr(options, name)) is not None
    }
    return dataclasses.replace(SETTINGS[options.task], **changes)


def pilot(config: Config, trial: Trial, data: Data) -> jaxclip.Advice:
    """Returns what the norms of a training suggest, its own clip left out.

    Args:
        config: the training; the place of its clip counts, and what the clip is does not.
        trial: its numbers, of which the limit does not count.
        data: the examples.

    Raises:
        BadInput: not one norm was finite.
    """
    unclipped = dataclasses.replace(config, clip=unlimited, schedule=None, per_example=None)
    history = jax.jit(train.train, static_argnums=0)(unclipped, trial, data)
    try:
        return jaxclip.advise(np.ravel(history.norm))
    except ValueError as error:
        raise BadInput(f"the pilot tells nothing: {error}") from error


def unlimited(limit: Limit) -> optax.GradientTransformation:
    """Returns a clip that measures and changes nothing."""
    return jaxclip.clip_by_global_norm(jnp.inf)
