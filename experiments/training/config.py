"""The description of a training: a `Config` decides its code, a `Trial` has its numbers.

Every number is an array, so that `jax.vmap` sweeps it; everything else is a
function or a shape, and costs a compilation of its own.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from experiments.training.data import Data
from experiments.training.sampling import Sampler, shuffle
from experiments.training.schedules import Shape

Params = Any
Batch = Any
Limit = jax.Array | optax.Schedule


class Task(Protocol):
    """Something to learn: hashable, and all but `data` are pure functions that JAX can trace."""

    def data(self, folder: Path | None = None) -> Data:
        """Returns the data; `folder` holds the original files, where there are any."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Returns new parameters."""
        ...

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Returns the mean loss f32[] of a batch: rows of the training data."""
        ...

    def score(self, params: Params, test: Any) -> jax.Array:
        """Returns the score f32[] of the parameters on the test data."""
        ...


@dataclasses.dataclass(frozen=True)
class Config:
    """The choices that decide the code of a training; each `Config` is compiled once.

    Attributes:
        task: the task.
        clip: makes the clip from its limit, which is an array or a schedule:
            `lambda limit: jaxclip.clip_by_global_norm(limit)`. A method without a limit ignores it.
        optimizer: makes the optimizer from its learning rate f32[].
        schedule: how the limit goes from `Trial.limit` to `Trial.last_limit`; None: it stays.
        clip_last: whether the clip comes after the optimizer, not before.
        per_example: makes, of the loss of an example and the limit, a function of a batch that
            returns its loss, its gradient and the norms, as `jaxclip.value_and_clipped_grad` does;
            None: the gradient is that of the mean loss, and examples are not clipped.
        noise: makes, of a key, the transformation that adds noise before the clip; None: no noise.
        corrupt: changes a batch, given the number i32[] of the step.
        disturb: changes a gradient, given the number i32[] of the step and a key.
        sampler: how examples come into batches.
        batch_size: the number of examples of a step; with Poisson sampling, the expected one.
        epochs: passes over the training data.
    """

    task: Task
    clip: Callable[[Limit], optax.GradientTransformation]
    optimizer: Callable[[jax.Array], optax.GradientTransformation] = optax.sgd
    schedule: Shape | None = None
    clip_last: bool = False
    per_example: Callable[[Callable, Limit], Callable] | None = None
    noise: Callable[[jax.Array], optax.GradientTransformation] | None = None
    corrupt: Callable[[jax.Array, Batch], Batch] | None = None
    disturb: Callable[[jax.Array, jax.Array, Params], Params] | None = None
    sampler: Sampler = shuffle
    batch_size: int = 100
    epochs: int = 10


class Trial(NamedTuple):
    """The numbers of one training, each a scalar array; under `vmap`, an array of them.

    Attributes:
        seed: i32[], decides the first parameters and the order of the examples.
        learning_rate: f32[].
        limit: f32[], given to `Config.clip`.
        last_limit: f32[], where `Config.schedule` takes the limit.
        by: f32[], the share of the steps by which it is there.
    """

    seed: jax.Array
    learning_rate: jax.Array
    limit: jax.Array
    last_limit: jax.Array
    by: jax.Array


def trial(
    seed: int = 0,
    learning_rate: float = 0.01,
    limit: float = 1.0,
    last_limit: float | None = None,
    by: float = 1.0,
) -> Trial:
    """Returns a `Trial` of Python numbers; without a last limit, the limit is constant."""
    last = limit if last_limit is None else last_limit
    floats = [jnp.asarray(number, jnp.float32) for number in (learning_rate, limit, last, by)]
    return Trial(jnp.asarray(seed, jnp.int32), *floats)
