"""The description of a training: a `Config` decides its code, a `Trial` has its numbers.

Every number is an array, so that `jax.vmap` sweeps it; everything else is a
function or a shape, and costs a compilation of its own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from experiments.training.data import Data
from experiments.training.sampling import Sampler, shuffle
from experiments.training.schedules import shape_number

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

    @property
    def loss(self) -> Callable[..., jax.Array]:
        """The mean loss f32[] of parameters and a batch: rows of the training data.

        What `Trial.task` holds are further arguments.
        """
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
            What `Trial.clip` holds are further arguments.
        optimizer: makes the optimizer from its learning rate, which is an array f32[] or a
            schedule. What `Trial.optimizer` holds are further arguments.
        schedule: whether the limit goes from `Trial.limit` to `Trial.last_limit`.
        rate_schedule: whether the learning rate warms up and goes to `Trial.last_rate`.
        clip_last: whether the clip comes after the optimizer, not before.
        per_example: makes, of the loss of an example and the limit, a function of a batch that
            returns its loss, its gradient and the norms, as `jaxclip.value_and_clipped_grad` does;
            None: the gradient is that of the mean loss, and examples are not clipped.
        noise: makes, of a key, the transformation that adds noise before the clip; None: no noise.
        corrupt: changes a batch, given the number i32[] of the step.
        disturb: changes a gradient, given the number i32[] of the step and a key.
        draw: adds to a batch what is random of it, or changes it at random, given a key.
        watch: returns numbers f32[n] of the gradient of every step, before the clip.
        probe: returns numbers f32[n] of the parameters in the end, given the test data as well.
        sampler: how examples come into batches.
        batch_size: the number of examples of a step; with Poisson sampling, the expected one.
        epochs: passes over the training data.
    """

    task: Task
    clip: Callable[..., optax.GradientTransformation]
    optimizer: Callable[..., optax.GradientTransformation] = optax.sgd
    schedule: bool = False
    rate_schedule: bool = False
    clip_last: bool = False
    per_example: Callable[[Callable, Limit], Callable] | None = None
    noise: Callable[[jax.Array], optax.GradientTransformation] | None = None
    corrupt: Callable[[jax.Array, Batch], Batch] | None = None
    disturb: Callable[[jax.Array, jax.Array, Params], Params] | None = None
    draw: Callable[[jax.Array, Batch], Batch] | None = None
    watch: Callable[[Params], jax.Array] | None = None
    probe: Callable[[Params, Any], jax.Array] | None = None
    sampler: Sampler = shuffle
    batch_size: int = 100
    epochs: int = 10


class Trial(NamedTuple):
    """The numbers of one training, each a scalar array; under `vmap`, an array of them.

    Attributes:
        seed: i32[], decides the first parameters and the order of the examples.
        learning_rate: f32[], at its peak.
        limit: f32[], given to `Config.clip`.
        last_limit: f32[], where `Config.schedule` takes the limit.
        by: f32[], the share of the steps by which it is there.
        shape: i32[], the shape of its way there, by its number in `schedules.SHAPES`.
        warm_up: f32[], the share of the steps in which the learning rate rises to its peak, where
            `Config.rate_schedule`.
        last_rate: f32[], the share of the peak that the learning rate falls to.
        rate_shape: i32[], the shape of its way there.
        clip: further arguments f32[] of `Config.clip`.
        optimizer: further arguments f32[] of `Config.optimizer`.
        task: further arguments f32[] of the task's loss.
    """

    seed: jax.Array
    learning_rate: jax.Array
    limit: jax.Array
    last_limit: jax.Array
    by: jax.Array
    shape: jax.Array
    warm_up: jax.Array
    last_rate: jax.Array
    rate_shape: jax.Array
    clip: Mapping[str, jax.Array]
    optimizer: Mapping[str, jax.Array]
    task: Mapping[str, jax.Array]


def trial(
    seed: int = 0,
    learning_rate: float = 0.01,
    limit: float = 1.0,
    last_limit: float | None = None,
    by: float = 1.0,
    *,
    first_share: float = 1.0,
    last_share: float = 1.0,
    shape: int = shape_number("linear"),
    warm_up: float = 0.0,
    last_rate: float = 1.0,
    rate_shape: int = shape_number("cosine"),
    **further: float,
) -> Trial:
    """Returns a `Trial` of Python numbers; without a last limit, the limit is constant.

    Args:
        seed: as in `Trial`.
        learning_rate: as in `Trial`.
        limit: the limit at its peak.
        last_limit: as in `Trial`; by default `last_share` of the peak.
        by: as in `Trial`.
        first_share: the share of the peak that the limit begins with.
        last_share: the share of the peak that it ends with.
        shape: as in `Trial`.
        warm_up: as in `Trial`.
        last_rate: as in `Trial`.
        rate_shape: as in `Trial`.
        further: arguments of the clip, the optimizer and the task's loss, such as
            `**{"clip.decay": 0.99, "optimizer.momentum": 0.9, "task.temperature": 4.0}`.
    """
    last = last_share * limit if last_limit is None else last_limit
    real, whole = (lambda x: jnp.asarray(x, jnp.float32)), (lambda x: jnp.asarray(x, jnp.int32))
    parts = ("clip", "optimizer", "task")
    own = {
        part: {
            name.removeprefix(f"{part}."): real(number)
            for name, number in further.items()
            if name.startswith(f"{part}.")
        }
        for part in parts
    }
    if sum(map(len, own.values())) < len(further):
        raise TypeError(
            f"trial() has no argument for one of {', '.join(further)}: give names that begin with "
            f"clip., optimizer. or task."
        )
    return Trial(
        seed=whole(seed),
        learning_rate=real(learning_rate),
        limit=real(first_share * limit),
        last_limit=real(last),
        by=real(by),
        shape=whole(shape),
        warm_up=real(warm_up),
        last_rate=real(last_rate),
        rate_shape=whole(rate_shape),
        **own,
    )
