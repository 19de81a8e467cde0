"""The training loop: a scan over steps inside a scan over epochs, with nothing on the host.

`init` and `epoch` are its two halves, for callers that do something between epochs; `train` is the
whole, and `jax.vmap(train, (None, 0, None))` trains many at once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from experiments.errors import BadInput
from experiments.training.config import Batch, Config, Limit, Params, Task, Trial
from experiments.training.data import Data
from experiments.training.sampling import Batches
from experiments.training.schedules import rate_schedule, schedule

NOTHING = np.zeros(0, np.float32)
CLIP = "clip"  # the name of the clip under study, among those in the optimizer's state


class Keys(NamedTuple):
    """The keys of a training, one for each purpose."""

    params: jax.Array
    batches: jax.Array
    noise: jax.Array
    disturbance: jax.Array
    draws: jax.Array


def keys(seed: jax.Array) -> Keys:
    """Returns the keys that a seed i32[] gives; none of them can be made of another."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


class State(NamedTuple):
    """The state between epochs; `epoch` i32[] is the number of epochs done."""

    params: Params
    opt_state: optax.OptState
    epoch: jax.Array


class History(NamedTuple):
    """The metrics of every step: of one epoch f32[steps], of a training f32[epochs, steps].

    Attributes:
        loss: the loss of the batch before the step.
        norm: the norm that the clip measured. Of many blocks, the root mean square.
        limit: its limit; nan where the clip keeps no metrics.
        clipped: the share of the blocks that the clip shrank.
        score: the task's score after the epoch on the test data, f32[] or f32[epochs].
        validation: the same on the validation data; nan without any.
        watched: what `Config.watch` returns of the gradient of every step, f32[steps, n].
        probed: what `Config.probe` returns in the end of a training, f32[n].
    """

    loss: jax.Array
    norm: jax.Array
    limit: jax.Array
    clipped: jax.Array
    score: jax.Array
    validation: jax.Array
    watched: jax.typing.ArrayLike = NOTHING
    probed: jax.typing.ArrayLike = NOTHING


def steps_per_epoch(config: Config, data: Data) -> int:
    """Returns how many whole batches there are in the training data."""
    return example_count(data) // config.batch_size


def example_count(data: Data) -> int:
    """Returns the number of training examples."""
    return len(jax.tree.leaves(data.train)[0])


def limit(config: Config, trial: Trial, steps: int) -> Limit:
    """Returns the limit of a training of `steps` steps: an array, or a schedule."""
    if not config.schedule:
        return trial.limit
    return schedule(trial.shape, trial.limit, trial.last_limit, trial.by * steps)


def learning_rate(config: Config, trial: Trial, steps: int) -> Limit:
    """Returns the learning rate of a training of `steps` steps: an array, or a schedule."""
    if not config.rate_schedule:
        return trial.learning_rate
    numbers = trial.rate_shape, trial.learning_rate, trial.last_rate, trial.warm_up
    return rate_schedule(*numbers, steps)


def optimizer(config: Config, trial: Trial, steps: int) -> optax.GradientTransformationExtraArgs:
    """Returns the noise, the clip and the optimizer, chained."""
    clip = config.clip(limit(config, trial, steps), **trial.clip)
    rule = config.optimizer(learning_rate(config, trial, steps), **trial.optimizer)
    noise = [] if config.noise is None else [config.noise(keys(trial.seed).noise)]
    return optax.chain(*noise, *((rule, clip) if config.clip_last else (clip, rule)))


def init(config: Config, trial: Trial, data: Data) -> State:
    """Returns the state before the first epoch."""
    params = config.task.init(keys(trial.seed).params)
    steps = config.epochs * steps_per_epoch(config, data)
    opt_state = optimizer(config, trial, steps).init(params)
    return State(params, opt_state, jnp.zeros((), jnp.int32))


def sample(config: Config, trial: Trial, examples: int, epoch: jax.Array) -> Batches:
    """Returns the rows and the mask of the batches of an epoch, as its `Sampler` does."""
    # From the seed and the epoch alone: a resumed training finds the same order.
    key = jax.random.fold_in(keys(trial.seed).batches, epoch)
    return config.sampler(key, examples, examples // config.batch_size, config.batch_size)


def epoch(
    config: Config,
    trial: Trial,
    data: Data,
    state: State,
    batches: tuple[Batch, jax.Array | None] | None = None,
) -> tuple[State, History]:
    """Returns the state after one more epoch, and its history.

    Args:
        config: the code; static under `jax.jit`.
        trial: its numbers.
        data: the examples.
        state: the state before the epoch.
        batches: the batches [steps, batch_size, ...] of the epoch and their mask, where they are
            laid out already; `data` needs no training examples then.
    """
    data = jax.tree.map(jnp.asarray, data)
    if batches is None:
        batches_or_rows, mask = sample(config, trial, example_count(data), state.epoch)
    else:
        batches_or_rows, mask = batches
    steps = len(jax.tree.leaves(batches_or_rows)[0])
    update = optimizer(config, trial, config.epochs * steps).update
    limits = limit(config, trial, config.epochs * steps)
    # From the seed and the epoch alone: a resumed training finds the same order.
    here = jax.tree.map(lambda key: jax.random.fold_in(key, state.epoch), keys(trial.seed))

    def step(carry: tuple, place: tuple) -> tuple[tuple, tuple]:
        params, opt_state = carry
        index, rows, mask = place
        count = state.epoch * steps + index
        batch = jax.tree.map(lambda column: column[rows], data.train) if batches is None else rows
        if config.corrupt is not None:
            batch = config.corrupt(count, batch)
        if config.draw is not None:
            batch = config.draw(jax.random.fold_in(here.draws, index), batch)
        now = jnp.asarray(limits(count)) if callable(limits) else limits
        loss, gradient, examples = value_and_grad(config, trial, now, params, batch, mask)
        if config.disturb is not None:
            gradient = config.disturb(count, jax.random.fold_in(here.disturbance, index), gradient)
        watched = config.watch(gradient) if config.watch is not None else jnp.zeros(0)
        updates, opt_state = update(gradient, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        series = examples or clip_series(gradient, opt_state)
        return (params, opt_state), (loss, *series, watched)

    (params, opt_state), series = jax.lax.scan(
        step, (state.params, state.opt_state), (jnp.arange(steps), batches_or_rows, mask)
    )
    loss, norm, limits, clipped, watched = series
    score, validation = scores(config.task, params, data)
    history = History(loss, norm, limits, clipped, score, validation, watched)
    return State(params, opt_state, state.epoch + 1), history


def scores(task: Task, params: Params, data: Data) -> tuple[jax.Array, jax.Array]:
    """Returns the scores f32[] on the test data and on the validation data, nan without any."""
    if data.validation is None:
        return task.score(params, data.test), jnp.full((), jnp.nan)
    return task.score(params, data.test), task.score(params, data.validation)


def value_and_grad(
    config: Config,
    trial: Trial,
    limit: jax.Array,
    params: Params,
    batch: Batch,
    mask: jax.Array | None,
) -> tuple:
    """Returns a batch's loss, its gradient, and norm, limit and share clipped of its examples.

    The last is None where the examples are not clipped.
    """
    loss = functools.partial(config.task.loss, **trial.task)
    if config.per_example is None:
        return *jax.value_and_grad(loss)(params, batch), None

    def loss_of_one(params: Params, example: Batch) -> jax.Array:
        return loss(params, jax.tree.map(lambda column: column[None], example))

    _, gradient, info = config.per_example(loss_of_one, limit)(params, batch, example_mask=mask)
    series = info.values, jnp.square(info.norms), info.clipped.astype(info.norms.dtype)
    value, square, clipped = (jnp.mean(one, where=mask) for one in series)
    return value, gradient, (jnp.sqrt(square), limit, clipped)


def clip_series(gradient: Any, opt_state: optax.OptState) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns norm, limit and share clipped, from the metrics of the clip under study."""
    metrics = find_metrics(opt_state)
    if metrics is None:
        return jaxclip.global_norm(gradient), jnp.full((), jnp.nan), jnp.zeros(())
    return metrics.norm, metrics.limit, metrics.clipped


def find_metrics(opt_state: optax.OptState) -> jaxclip.ClipMetrics | None:
    """Returns the metrics of the clip under study: of the one named `clip`, or of the only one.

    Raises:
        BadInput: there are several, and none has that name.
    """
    found = jaxclip.metrics(opt_state)
    if CLIP in found or not found:
        return found.get(CLIP)
    if len(found) > 1:
        raise BadInput(
            f"the optimizer's state has the metrics of {', '.join(found)}, and none is named "
            f"{CLIP}: give the clip under study this name, by name="
        )
    [only] = found.values()
    return only


def train(config: Config, trial: Trial, data: Data) -> History:
    """Returns the history of a whole training.

    Args:
        config: the code; static under `jax.jit`.
        trial: its numbers.
        data: the examples, on the device.
    """
    start = init(config, trial, data)
    end, history = jax.lax.scan(
        lambda state, _: epoch(config, trial, data, state), start, length=config.epochs
    )
    return history._replace(probed=probe(config, end.params, data))


def probe(config: Config, params: Params, data: Data) -> jax.Array:
    """Returns what `Config.probe` returns in the end, f32[n]."""
    if config.probe is None:
        return jnp.zeros(0)
    return config.probe(params, jax.tree.map(jnp.asarray, data.test))
