r"""Differentially private training: clipped examples, the noise of `jax-privacy`, an accountant.

    g = (sum of the clipped gradients of a Poisson sample + N(0, (noise * limit)^2)) / batch_size

The final parameters are (epsilon, delta)-differentially private with regard to the addition or the
removal of one training example: DP-SGD, Abadi et al. 2016, arXiv 1607.00133. What that rests on:

- jaxclip computes no epsilon. It bounds what an example adds to the sum by the limit; the noise is
  that of `jax-privacy`, and how much of it the target takes is the answer of `dp-accounting`.
- Every example is in a batch with the same probability, whatever the others are, and the sum is
  divided by the size that is expected, never by the one that came. The arrays have room for more
  than the expected number. That a batch overflows anywhere in the training has a probability eta,
  and is paid for: (1 + exp(epsilon)) * eta is taken from delta before the noise is calibrated.
- What is private is the parameters, and what is computed from them and public data. The training
  losses, norms and clip rates in the folder of a run are not, and would not be published.
- Randomness is JAX's generator, which is not cryptographically secure, and the noise is of floats
  of finite precision.
- The hyperparameters were chosen by trainings on this public data, which no epsilon accounts for.
"""

import dataclasses
import functools
import importlib
import math
import time
from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

import jaxclip
from experiments import curves, files, progress, run, runs
from experiments.config import Batch, Params, Task
from experiments.data import Data
from experiments.errors import BadInput
from experiments.private_options import RunPrivate
from experiments.tasks.mnist_cnn import MnistCnn
from experiments.train import History, State, keys, scores

OVERFLOW = 1e-3  # the share of delta that pays for batches without room
LEAST_NOISE = 0.3  # below, accounting takes minutes, and hardly any noise is left to save
MOMENTUM = 0.9


def gaussian(stddev: float, key: jax.Array) -> optax.GradientTransformation:
    """Returns what adds independent normal noise to every entry of a gradient."""
    return needed("jax_privacy.noise_addition").gaussian_privatizer(stddev=stddev, prng_key=key)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What decides a private training, but for its seed and the data.

    Attributes:
        task: what is learned.
        limit: of the norm of an example's gradient.
        multiplier: the standard deviation of the noise, in limits.
        probability: of an example to be in a batch.
        batch_size: the expected number of examples in a batch.
        room: the number of examples that a batch has room for.
        steps: in an epoch.
        epochs: how many.
        learning_rate: of SGD with momentum.
        noise: makes the noise of a standard deviation and a key.
    """

    task: Task
    limit: float
    multiplier: float
    probability: float
    batch_size: int
    room: int
    steps: int
    epochs: int
    learning_rate: float
    noise: Callable[[float, jax.Array], optax.GradientTransformation] = gaussian


def plan(options: RunPrivate, examples: int) -> Plan:
    """Returns the training that the options mean on so many examples."""
    run.check_batch_size(options.batch_size, examples)
    probability = options.batch_size / examples
    steps = round(1 / probability)
    total = options.epochs * steps
    return Plan(
        task=MnistCnn(),
        limit=options.limit,
        multiplier=noise_multiplier(
            options.epsilon, (1 - OVERFLOW) * options.delta, probability, total
        ),
        probability=probability,
        batch_size=options.batch_size,
        room=room(options.epsilon, OVERFLOW * options.delta, probability, total, examples),
        steps=steps,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
    )


def noise_multiplier(epsilon: float, delta: float, probability: float, steps: int) -> float:
    """Returns the least noise, in limits, that makes so many steps (epsilon, delta)-private.

    Args:
        epsilon: the target.
        delta: the target.
        probability: of an example to be in a batch.
        steps: how often the noisy sum of a batch is released.
    """
    dp, pld = needed("dp_accounting"), needed("dp_accounting.pld")

    def event(multiplier: float) -> Any:
        batch = dp.PoissonSampledDpEvent(probability, dp.GaussianDpEvent(multiplier))
        return dp.SelfComposedDpEvent(batch, steps)

    # Coarser than the default of 1e-4, and ten times as fast; what it rounds, it rounds up.
    accountant = functools.partial(pld.PLDAccountant, value_discretization_interval=1e-3)
    if accountant().compose(event(LEAST_NOISE)).get_epsilon(delta) <= epsilon:
        return LEAST_NOISE
    bracket = dp.LowerEndpointAndGuess(LEAST_NOISE, 1.0)
    return float(dp.calibrate_dp_mechanism(accountant, event, epsilon, delta, bracket, tol=1e-3))


def room(epsilon: float, delta: float, probability: float, steps: int, examples: int) -> int:
    """Returns how many examples a batch needs room for, if overflows may cost `delta` in all.

    A training that drops what has no room differs from one that does not with a probability eta,
    that of any overflow. Where the latter is (epsilon, d)-private, the former is
    (epsilon, d + (1 + exp(epsilon)) eta)-private.
    """
    overflow = delta / (1 + math.exp(min(epsilon, 700))) / steps
    # One more example than there are: the neighbor of the data may have it.
    return min(examples, int(stats.binom.isf(overflow, examples + 1, probability)))


def sample(
    key: jax.Array, examples: int, probability: float, room: int
) -> tuple[jax.Array, jax.Array]:
    """Returns a Poisson sample: rows i32[room], and a bool[room] that tells them from padding."""
    # "low" rounds the probability to 23 bits, and then it is not quite the one accounted for.
    drawn = jax.random.bernoulli(key, probability, (examples,), mode="high")
    [rows] = jnp.nonzero(drawn, size=room, fill_value=0)
    return rows, jnp.arange(room) < jnp.sum(drawn)


def clipped_sum(
    plan: Plan, params: Params, batch: Batch, mask: jax.Array
) -> tuple[Params, jaxclip.per_example.Info]:
    """Returns the sum of the clipped gradients of those examples that the mask leaves in."""

    def loss(params: Params, example: Batch) -> jax.Array:
        return plan.task.loss(params, jax.tree.map(lambda column: column[None], example))

    clip = jaxclip.clipped_grad(loss, plan.limit, reduce="sum")
    return clip(params, batch, example_mask=mask)


def optimizer(plan: Plan, key: jax.Array) -> optax.GradientTransformation:
    """Returns what makes the updates of clipped sums: noise, the expected mean, and SGD."""
    return optax.chain(
        plan.noise(plan.multiplier * plan.limit, key),
        optax.scale(1 / plan.batch_size),
        optax.sgd(plan.learning_rate, MOMENTUM),
    )


def init(plan: Plan, seed: jax.Array) -> State:
    """Returns the state before the first epoch."""
    params = plan.task.init(keys(seed).params)
    opt_state = optimizer(plan, keys(seed).noise).init(params)
    return State(params, opt_state, jnp.zeros((), jnp.int32))


def epoch(plan: Plan, seed: jax.Array, data: Data, state: State) -> tuple[State, History]:
    """Returns the state after one more epoch, and what happened in it."""
    data = jax.tree.map(jnp.asarray, data)
    examples = len(jax.tree.leaves(data.train)[0])
    update = optimizer(plan, keys(seed).noise).update

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
        params, opt_state = carry
        rows, mask = sample(key, examples, plan.probability, plan.room)
        batch = jax.tree.map(lambda column: column[rows], data.train)
        gradient, info = clipped_sum(plan, params, batch, mask)
        updates, opt_state = update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        seen = info.values, jnp.square(info.norms), info.clipped.astype(info.norms.dtype)
        loss, square, clipped = (jnp.mean(series, where=mask) for series in seen)
        return (params, opt_state), (
            loss,
            jnp.sqrt(square),
            jnp.full_like(loss, plan.limit),
            clipped,
        )

    steps = jax.random.split(jax.random.fold_in(keys(seed).batches, state.epoch), plan.steps)
    (params, opt_state), series = jax.lax.scan(step, (state.params, state.opt_state), steps)
    loss, norm, limits, clipped = series
    history = History(loss, norm, limits, clipped, *scores(plan.task, params, data))
    return State(params, opt_state, state.epoch + 1), history


class Result(TypedDict):
    """What `result.json` says.

    Attributes:
        clip_rate: the share of the steps in which any example was clipped.
        examples_clipped: the mean share of the examples of a batch that were clipped.
        libraries: the versions of the packages that made the noise and the accounting.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_probability: float
    room: int
    steps: int
    accuracy: float
    clip_rate: float
    examples_clipped: float
    seconds: float
    accounting_seconds: float
    libraries: dict[str, str]
    parameters_sha256: str


def command(options: RunPrivate, typed: str = "") -> Result:
    """Trains as the options say, and returns what `result.json` says.

    Args:
        options: what the user typed; of a run that is resumed, the options that it has.
        typed: how it was typed, for the record.
    """
    options.check()
    for module in ("jax_privacy", "dp_accounting"):
        needed(module)
    run.use(options.platform)
    examples = MnistCnn().data(options.mnist_dir)
    run.check_batch_size(options.batch_size, len(examples.train.labels))
    with run.opened(options, title(options), typed) as folder:
        result = folder.result(Result) or fit(options, examples, folder)
    print(conclusion(result))
    print(f"Kept in {folder.folder}")
    return result


def title(options: RunPrivate) -> str:
    """Returns the name of a run."""
    return f"mnist-private epsilon {options.epsilon:g}"


def fit(options: RunPrivate, examples: Data, folder: runs.Run) -> Result:
    """Trains what is left to train, and writes everything into the folder."""
    start = time.perf_counter()
    wanted = plan(options, len(examples.train.labels))
    accounting = time.perf_counter() - start
    print(
        f"(epsilon {options.epsilon:g}, delta {options.delta:g}) takes noise of "
        f"{wanted.multiplier:.3f} limits in each of {wanted.epochs * wanted.steps} steps."
    )
    libraries = {name: metadata.version(name) for name in ("jax-privacy", "dp-accounting")}
    origin = {**run.made_by(folder, examples), "libraries": libraries}
    examples = jax.device_put(examples)
    seed = jnp.asarray(options.seed, jnp.int32)
    start_state, advance = (jax.jit(function, static_argnums=0) for function in (init, epoch))
    state = folder.restore(jax.eval_shape(start_state, wanted, seed), origin, wanted.epochs)
    if state is None:
        state = start_state(wanted, seed)
    done = int(state.epoch)
    folder.cut(done * wanted.steps)
    folder.begin()
    with progress.report(wanted.epochs, done, share=progress.examples_clipped) as report:
        for number in range(done + 1, wanted.epochs + 1):
            state, history = advance(wanted, seed, examples, state)
            history = jax.device_get(history)
            folder.append(number, history)
            folder.save(state, origin)
            report(number, history)
    metrics = folder.metrics()
    curves.draw(metrics, title(options), folder.folder / "curves.png")
    result: Result = {
        "epsilon": options.epsilon,
        "delta": options.delta,
        "noise_multiplier": wanted.multiplier,
        "sampling_probability": wanted.probability,
        "room": wanted.room,
        "steps": wanted.epochs * wanted.steps,
        "accuracy": float(metrics.score[-1]),
        "clip_rate": float(np.mean(metrics.clipped > 0)),
        "examples_clipped": float(np.mean(metrics.clipped)),
        "seconds": round(time.perf_counter() - start - accounting, 3),
        "accounting_seconds": round(accounting, 3),
        "libraries": libraries,
        "parameters_sha256": files.fingerprint(state.params),
    }
    folder.finish(result)
    return folder.result(Result)


def conclusion(result: Result) -> str:
    """Returns the line that a run ends with."""
    return (
        f"Accuracy: {100 * result['accuracy']:.2f} %  at epsilon {result['epsilon']:g}, "
        f"delta {result['delta']:g}  (noise multiplier {result['noise_multiplier']:.3f}, "
        f"examples clipped {100 * result['examples_clipped']:.1f} %)"
    )


def needed(module: str) -> ModuleType:
    """Returns a module that the package does not depend on."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            f"private training needs jax-privacy and dp-accounting ({error}): install "
            f"'jaxclip[privacy]'"
        ) from error
