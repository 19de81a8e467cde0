"""The command `pilot`: gradient norms of a task without a clip, and the methods they suggest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from experiments.errors import BadInput
from experiments.studies.settings import Folders, Setting
from experiments.training import train
from experiments.training.config import Config, Limit, Trial, trial
from experiments.training.data import Data


def pilot_setting(setting: Setting, seed: int, folders: Folders) -> jaxclip.Advice:
    """Returns the advice from the norms of a setting.

    Args:
        setting: the task and its training.
        seed: of the training.
        folders: the original files of data sets.
    """
    numbers = trial(seed, setting.learning_rate, **setting.numbers)
    return pilot(setting.config(no_clip), numbers, setting.data(folders))


def pilot(config: Config, trial: Trial, data: Data) -> jaxclip.Advice:
    """Returns the advice from the norms of a training without its clip.

    Args:
        config: the training; the place of its clip counts, and the clip itself does not.
        trial: its numbers; the limit does not count.
        data: the examples.

    Raises:
        BadInput: not one norm was finite.
    """
    unclipped = dataclasses.replace(config, clip=no_clip, schedule=False, per_example=None)
    history = jax.jit(train.train, static_argnums=0)(unclipped, trial, data)
    try:
        return jaxclip.advise(np.ravel(history.norm))
    except ValueError as error:
        raise BadInput(f"the pilot has no advice: {error}") from error


def no_clip(limit: Limit) -> optax.GradientTransformation:
    """Returns a clip that measures and changes nothing."""
    return jaxclip.clip_by_global_norm(jnp.inf)
