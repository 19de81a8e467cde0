"""Data-parallel training: every device has the whole state, and a share of every batch.

With several devices the batches of an epoch are laid out on the host, and each process sends its
own devices their shares. The training is that of `train.epoch` on one device, but for the order of
the sums that are taken over devices.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import processes
from experiments.errors import BadInput
from experiments.training import train
from experiments.training.config import Config, Trial
from experiments.training.data import Data
from experiments.training.train import History, State

AXIS = "batch"
sample = jax.jit(train.sample, static_argnums=(0, 2))


class Trainer:
    """A training on as many devices as can share a batch evenly.

    Attributes:
        mesh: these devices, along one axis.
    """

    def __init__(self, config: Config, trial: Trial, data: Data):
        """Places on the devices what is the same in every epoch.

        Raises:
            BadInput: the devices of several processes cannot share a batch evenly.
        """
        self.config, self.trial, self.data = config, trial, data
        self.mesh = make_mesh(config, trial, train.example_count(data))
        self.code = compile_for(self.mesh)
        placed = data if self.mesh.size == 1 else data._replace(train=())
        self.placed = processes.place((trial, placed), whole(self.mesh))

    def init(self) -> State:
        """Returns the state before the first epoch."""
        return self.code.init(self.config, self.placed[0], self.data)

    def shape(self) -> State:
        """Returns the shapes, dtypes and shardings of the state."""
        state = jax.eval_shape(self.code.init, self.config, self.placed[0], self.data)
        sharding = whole(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )

    def epoch(self, state: State) -> tuple[State, History]:
        """Returns the state after one more epoch, and its history as arrays of the host."""
        batches = None if self.mesh.size == 1 else self.batches(int(state.epoch))
        state, history = self.code.epoch(self.config, *self.placed, state, batches)
        return state, jax.device_get(history)

    def batches(self, epoch: int) -> tuple[Any, jax.Array | None]:
        """Returns the batches of an epoch and their mask, spread over the devices."""
        examples = train.example_count(self.data)
        drawn = sample(self.config, self.trial, examples, np.int32(epoch))
        rows, mask = jax.tree.map(np.asarray, drawn)
        if mask is not None:  # padding is free: to a multiple of the devices
            missing = ((0, 0), (0, -rows.shape[1] % self.mesh.size))
            rows, mask = np.pad(rows, missing), np.pad(mask, missing)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, AXIS))

        def lay_out(column: np.ndarray) -> jax.Array:
            def share(index: tuple[slice, ...] | None) -> np.ndarray:
                return column[rows[index[:2] if index else ...]]

            shape = (*rows.shape, *column.shape[1:])
            return jax.make_array_from_callback(shape, sharding, share)

        return jax.tree.map(lay_out, self.data.train), processes.place(mask, sharding)


class Code(NamedTuple):
    """The two halves of a training, compiled for a mesh; a `Config` is static."""

    init: Callable
    epoch: Callable


@functools.cache
def compile_for(mesh: Mesh) -> Code:
    """Returns the code for a mesh, on which every state and every history is replicated."""
    jit = functools.partial(jax.jit, static_argnums=0, out_shardings=whole(mesh))
    return Code(jit(train.init), jit(train.epoch))


def whole(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def make_mesh(config: Config, trial: Trial, examples: int) -> Mesh:
    """Returns the devices that can share a batch evenly.

    Raises:
        BadInput: these are not all of several processes.
    """
    devices = jax.devices()
    _, mask = jax.eval_shape(lambda: train.sample(config, trial, examples, jnp.int32(0)))
    # A batch with a mask can be padded to any size.
    count = math.gcd(config.batch_size, len(devices)) if mask is None else len(devices)
    if jax.process_count() > 1 and count < len(devices):
        raise BadInput(
            f"--batch-size is {config.batch_size}, and the {len(devices)} devices of "
            f"{jax.process_count()} processes share every batch: give a multiple of {len(devices)}"
        )
    return Mesh(np.array(devices[:count]), (AXIS,))
