r"""Differentially private training: clipped examples, the noise of `jax-privacy`, an accountant.

    g = (sum of the clipped gradients of a Poisson sample + N(0, (noise * limit)^2)) / batch_size

The final parameters are (epsilon, delta)-differentially private with regard to the addition or the
removal of one training example: DP-SGD, Abadi et al. 2016, arXiv 1607.00133. What that rests on:

- jaxclip computes no epsilon. It bounds what an example adds to the sum by the limit; the noise is
  that of `jax-privacy`, and `dp-accounting` computes how much of it the target takes.
- Every example is in a batch with the same probability, whatever the others are, and the sum is
  divided by the expected size, never by the actual one. The arrays have room for more
  than the expected number. That a batch overflows anywhere in the training has a probability eta,
  and is paid for: (1 + exp(epsilon)) * eta is taken from delta before the noise is calibrated.
- The parameters are private, and everything computed from them and public data. The training
  losses, norms and clip rates in the folder of a run are not, and would not be published.
- Randomness is JAX's generator, which is not cryptographically secure, and the noise is of floats
  of finite precision.
- The hyperparameters were chosen by trainings on this public data, which no epsilon accounts for.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypedDict

import jax
import optax

import jaxclip
from experiments.errors import BadInput
from experiments.training.config import Config, Task
from experiments.training.sampling import Poisson

OVERFLOW = 1e-3  # the share of delta that pays for batches without room
LEAST_NOISE = 0.3  # below, accounting takes minutes, and hardly any noise is left to save
MOMENTUM = 0.9
PACKAGES = ("jax-privacy", "dp-accounting")


class Privacy(TypedDict):
    """The guarantee of a run, and the numbers that it rests on.

    Attributes:
        epsilon: the target.
        delta: the target.
        noise_multiplier: the standard deviation of the noise, in limits.
        sampling_probability: of an example to be in a batch.
        room: the number of examples that a batch has room for.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_probability: float
    room: int


@dataclasses.dataclass(frozen=True)
class Noise:
    """Makes the noisy mean of a sum of clipped gradients.

    Attributes:
        stddev: the standard deviation of the noise of every entry of the sum.
        batch_size: the expected number of examples in a batch.
        add: makes, of a standard deviation and a key, the transformation that adds noise.
    """

    stddev: float
    batch_size: int
    add: Callable[[float, jax.Array], optax.GradientTransformation]

    def __call__(self, key: jax.Array) -> optax.GradientTransformation:
        """Returns the transformation of a key."""
        return optax.chain(self.add(self.stddev, key), optax.scale(1 / self.batch_size))


def gaussian(stddev: float, key: jax.Array) -> optax.GradientTransformation:
    """Returns the transformation that adds independent normal noise to every entry."""
    return import_privacy("jax_privacy.noise_addition").gaussian_privatizer(
        stddev=stddev, prng_key=key
    )


def account(epsilon: float, delta: float, batch_size: int, epochs: int, examples: int) -> Privacy:
    """Returns the noise and the room that make a training (epsilon, delta)-private.

    Args:
        epsilon: the target.
        delta: the target.
        batch_size: the expected number of examples in a batch.
        epochs: of the training, each of the whole batches that there are.
        examples: the number of training examples.
    """
    probability, steps = batch_size / examples, epochs * (examples // batch_size)
    return Privacy(
        epsilon=epsilon,
        delta=delta,
        noise_multiplier=noise_multiplier(epsilon, (1 - OVERFLOW) * delta, probability, steps),
        sampling_probability=probability,
        room=room(epsilon, OVERFLOW * delta, probability, steps, examples),
    )


def private_config(
    task: Task,
    privacy: Privacy,
    limit: float,
    batch_size: int,
    epochs: int,
    add: Callable[[float, jax.Array], optax.GradientTransformation] = gaussian,
) -> Config:
    """Returns a private training.

    Args:
        task: the task.
        privacy: its noise and its room.
        limit: of the norm of an example's gradient; the limit of the trial has to be the same.
        batch_size: the expected number of examples in a batch.
        epochs: as in `account`.
        add: as in `Noise`.
    """
    return Config(
        task=task,
        clip=no_clip,
        optimizer=functools.partial(optax.sgd, momentum=MOMENTUM),
        per_example=sum_clipped,
        noise=Noise(privacy["noise_multiplier"] * limit, batch_size, add),
        sampler=Poisson(privacy["room"]),
        batch_size=batch_size,
        epochs=epochs,
    )


def no_clip(limit: Any) -> optax.GradientTransformation:
    """Returns no clip: the examples are clipped, and not their noisy sum."""
    return optax.identity()


def sum_clipped(loss: Callable, limit: Any) -> Callable:
    """Returns the function that sums the clipped gradients of the unmasked examples.

    Norms are never below the true ones, whatever the rounding: the limit is the sensitivity.
    """
    return jaxclip.value_and_clipped_grad(loss, limit, reduce="sum", bound=True)


def noise_multiplier(epsilon: float, delta: float, probability: float, steps: int) -> float:
    """Returns the least noise, in limits, that makes so many steps (epsilon, delta)-private.

    Args:
        epsilon: the target.
        delta: the target.
        probability: of an example to be in a batch.
        steps: how often the noisy sum of a batch is released.
    """
    dp, pld = import_privacy("dp_accounting"), import_privacy("dp_accounting.pld")

    def event(multiplier: float) -> Any:
        batch = dp.PoissonSampledDpEvent(probability, dp.GaussianDpEvent(multiplier))
        return dp.SelfComposedDpEvent(batch, steps)

    # Coarser than the default of 1e-4, and ten times as fast; it rounds up.
    accountant = functools.partial(pld.PLDAccountant, value_discretization_interval=1e-3)
    if accountant().compose(event(LEAST_NOISE)).get_epsilon(delta) <= epsilon:
        return LEAST_NOISE
    bracket = dp.LowerEndpointAndGuess(LEAST_NOISE, 1.0)
    return float(dp.calibrate_dp_mechanism(accountant, event, epsilon, delta, bracket, tol=1e-3))


def room(epsilon: float, delta: float, probability: float, steps: int, examples: int) -> int:
    """Returns how many examples a batch needs room for, if overflows may cost `delta` in all.

    A training that drops examples without room differs from one that does not with a probability
    eta, that of any overflow. Where the latter is (epsilon, d)-private, the former is
    (epsilon, d + (1 + exp(epsilon)) eta)-private.
    """
    from scipy import (
        stats,
    )  # here, as it takes longer than all else that a typing mistake waits for

    overflow = delta / (1 + math.exp(min(epsilon, 700))) / steps
    # One more example than there are: the neighbor of the data may have it.
    return min(examples, int(stats.binom.isf(overflow, examples + 1, probability)))


def import_privacy(module: str) -> ModuleType:
    """Returns a module of the extra `privacy`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            f"private training needs jax-privacy and dp-accounting ({error}): install "
            f"'jaxclip[privacy]'"
        ) from error
