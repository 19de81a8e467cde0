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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

import jaxclip
from experiments import curves, progress, run, runs
from experiments.config import Batch, Params, Task
from experiments.data import Data
from experiments.errors import BadInput
from experiments.private_options import RunPrivate
from experiments.tasks.mnist_cnn import MnistCnn
from experiments.train import History, State, scores

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
    if options.batch_size > examples:
        raise BadInput(
            f"--batch-size is {options.batch_size}, and there are {examples} examples: give "
            f"{examples} or less"
        )
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


def keys(seed: jax.Array) -> jax.Array:
    """Returns the keys of the first parameters, of the batches and of the noise."""
    return jax.random.split(jax.random.key(seed), 3)


def init(plan: Plan, seed: jax.Array) -> State:
    """Returns the state before the first epoch."""
    first, _, noise = keys(seed)
    params = plan.task.init(first)
    return State(params, optimizer(plan, noise).init(params), jnp.zeros((), jnp.int32))


def epoch(plan: Plan, seed: jax.Array, data: Data, state: State) -> tuple[State, History]:
    """Returns the state after one more epoch, and what happened in it."""
    data = jax.tree.map(jnp.asarray, data)
    examples = len(jax.tree.leaves(data.train)[0])
    _, batches, noise = keys(seed)
    update = optimizer(plan, noise).update

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

    steps = jax.random.split(jax.random.fold_in(batches, state.epoch), plan.steps)
    (params, opt_state), series = jax.lax.scan(step, (state.params, state.opt_state), steps)
    loss, norm, limits, clipped = series
    history = History(loss, norm, limits, clipped, *scores(plan.task, params, data))
    return State(params, opt_state, state.epoch + 1), history


def command(options: RunPrivate, typed: str = "") -> dict[str, Any]:
    """Trains as the options say, and returns what `result.json` says.

    Args:
        options: what the user typed.
        typed: how it was typed, for the record.
    """
    options.check()
    for module in ("jax_privacy", "dp_accounting"):
        needed(module)
    run.use(options.platform)
    examples = MnistCnn().data(options.mnist_dir)
    start = time.perf_counter()
    wanted = plan(options, len(examples.train.labels))
    accounting = time.perf_counter() - start
    print(
        f"(epsilon {options.epsilon:g}, delta {options.delta:g}) takes noise of "
        f"{wanted.multiplier:.3f} limits in each of {wanted.epochs * wanted.steps} steps."
    )
    title = f"mnist-private epsilon {options.epsilon:g}"
    folder = runs.create(options.out, title, {**options.spelled_out(), "command": typed})
    with folder.lock():
        result = fit(wanted, options, examples, folder, title, accounting)
    print(conclusion(result))
    print(f"Kept in {folder.folder}")
    return result


def fit(
    plan: Plan, options: RunPrivate, examples: Data, folder: runs.Run, title: str, accounting: float
) -> dict[str, Any]:
    """Trains, and writes everything into the folder."""
    start = time.perf_counter()
    examples = jax.device_put(examples)
    seed = jnp.asarray(options.seed, jnp.int32)
    state = jax.jit(init, static_argnums=0)(plan, seed)
    advance = jax.jit(epoch, static_argnums=0)
    with progress.report(plan.epochs) as report:
        for number in range(1, plan.epochs + 1):
            state, history = advance(plan, seed, examples, state)
            history = jax.device_get(history)
            folder.append(number, history)
            report(number, history)
    metrics = folder.metrics()
    curves.draw(metrics, title, folder.folder / "curves.png")
    result = {
        "epsilon": options.epsilon,
        "delta": options.delta,
        "noise_multiplier": plan.multiplier,
        "sampling_probability": plan.probability,
        "room": plan.room,
        "steps": plan.epochs * plan.steps,
        "accuracy": float(metrics.score[-1]),
        "clip_rate": float(np.mean(metrics.clipped)),
        "seconds": round(time.perf_counter() - start, 3),
        "accounting_seconds": round(accounting, 3),
        "jax-privacy": metadata.version("jax-privacy"),
        "dp-accounting": metadata.version("dp-accounting"),
        "parameters_sha256": runs.fingerprint(state.params),
    }
    return folder.finish(result)


def conclusion(result: dict[str, Any]) -> str:
    """Returns the line that a run ends with."""
    return (
        f"Accuracy: {100 * result['accuracy']:.2f} %  at epsilon {result['epsilon']:g}, "
        f"delta {result['delta']:g}  (noise multiplier {result['noise_multiplier']:.3f}, clip rate "
        f"{100 * result['clip_rate']:.1f} %)"
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
