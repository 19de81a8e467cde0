"""Networks that others need trained, such as a teacher or a judge: trained once, and kept."""

import hashlib
from typing import Any

import jax

from experiments import files
from experiments.tasks import images
from experiments.training import train
from experiments.training.config import Config, Params, Trial
from experiments.training.data import Data

REMEDY = "delete it, and the network is trained anew"


def trained(name: str, config: Config, numbers: Trial, data: Data) -> Params:
    """Returns the parameters that a training ends with, kept in the cache.

    Args:
        name: begins the name of the file.
        config: the training, whose clip and optimizer `name` stands for.
        numbers: its numbers.
        data: the examples.
    """
    wanted = f"{config.task} {config.batch_size} {config.epochs} {files.fingerprint(numbers)}"
    wanted += f" {files.fingerprint(data)} {files.versions()}"
    path = images.CACHE / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}.npz"
    like = jax.eval_shape(config.task.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(like)
    expected = {str(index): (leaf.shape, leaf.dtype) for index, leaf in enumerate(leaves)}
    with files.open_folder(images.CACHE, "name another one by JAXCLIP_CACHE", wait=True):
        if not path.exists():
            params = jax.device_get(fit(config, numbers, data))
            files.write_arrays(path, dict(zip(expected, jax.tree.leaves(params), strict=True)))
    arrays = files.read_arrays(path, REMEDY)
    with files.read_errors(path, REMEDY):
        files.check_arrays(arrays, expected)
    return jax.tree.unflatten(structure, [arrays[name] for name in expected])


def fit(config: Config, numbers: Trial, data: Data) -> Params:
    """Returns the parameters that a training ends with."""
    init, epoch = (jax.jit(part, static_argnums=0) for part in (train.init, train.epoch))
    state: Any = init(config, numbers, data)
    for _ in range(config.epochs):
        state, _ = epoch(config, numbers, data, state)
    return state.params
