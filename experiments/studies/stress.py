"""Difficulties for a training: bad batches, bad gradients, bad labels.

Each is a frozen dataclass whose call is a pure function, so that a `Config` that holds it is
hashable. Every `every`-th step is hit, beginning with step `every - 1`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.images import Images
from experiments.training.config import Params
from experiments.training.data import Data


@dataclasses.dataclass(frozen=True)
class BadBatches:
    """Multiplies all images of every `every`-th batch by `factor`; symbols have no size."""

    every: int
    factor: float

    def __call__(self, step: jax.Array, batch: Images) -> Images:
        """Returns the batch of a step."""
        factor = jnp.where(is_disturbed(step, self.every), self.factor, 1.0)
        return batch._replace(images=factor * batch.images.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class HugeExamples:
    """Multiplies the first `count` images of every batch by `factor`; batches are shuffled."""

    count: int
    factor: float

    def __call__(self, step: jax.Array, batch: Images) -> Images:
        """Returns the batch of a step."""
        first = jnp.arange(len(batch.labels)) < self.count
        factors = jnp.where(first, self.factor, 1.0).reshape(-1, 1, 1, 1)
        return batch._replace(images=factors * batch.images.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Spikes:
    """Multiplies every `every`-th gradient by `factor`."""

    every: int
    factor: float

    def __call__(self, step: jax.Array, key: jax.Array, gradient: Params) -> Params:
        """Returns the gradient of a step."""
        factor = jnp.where(is_disturbed(step, self.every), self.factor, 1.0)
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, gradient)


@dataclasses.dataclass(frozen=True)
class Nans:
    """Makes every `every`-th gradient nan."""

    every: int

    def __call__(self, step: jax.Array, key: jax.Array, gradient: Params) -> Params:
        """Returns the gradient of a step."""
        bad = is_disturbed(step, self.every)
        return jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), gradient)


@dataclasses.dataclass(frozen=True)
class Overflow:
    """Makes the largest entry of every `every`-th gradient infinite, as a loss scale does."""

    every: int

    def __call__(self, step: jax.Array, key: jax.Array, gradient: Params) -> Params:
        """Returns the gradient of a step."""
        largest = jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)]).max()
        bad = is_disturbed(step, self.every)
        return jax.tree.map(
            lambda leaf: jnp.where(
                bad & (jnp.abs(leaf) == largest), jnp.copysign(jnp.inf, leaf), leaf
            ),
            gradient,
        )


@dataclasses.dataclass(frozen=True)
class HeavyTails:
    """Adds noise to the gradient: Student's t, whose tails are the heavier the less `degrees`.

    With two degrees of freedom or less its variance is infinite, as that of the gradients of large
    language models is said to be (Zhang et al. 2020).

    Attributes:
        scale: the factor of the noise.
        degrees: of freedom; 1 gives Cauchy's distribution.
    """

    scale: float
    degrees: float

    def __call__(self, step: jax.Array, key: jax.Array, gradient: Params) -> Params:
        """Returns the gradient of a step."""
        leaves, structure = jax.tree.flatten(gradient)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            leaf + (self.scale * student_t(key, self.degrees, leaf.shape)).astype(leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)


def student_t(key: jax.Array, degrees: float, shape: tuple[int, ...]) -> jax.Array:
    """Returns numbers f32[*shape] drawn from Student's t, by the polar method of Bailey (1994)."""
    # Rejection, which `jax.random.t` goes by, takes ten times as long, and longer under `vmap`.
    rank, angle = jax.random.uniform(key, (2, *shape))
    # The rank may be 0 and is never 1, so that the logarithm is finite.
    squared = degrees * jnp.expm1(-2 / degrees * jnp.log1p(-rank))
    return jnp.sqrt(squared) * jnp.cos(2 * jnp.pi * angle)


def is_disturbed(step: jax.Array, every: int) -> jax.Array:
    """Returns whether a step is hit."""
    return step % every == every - 1


def wrong_labels(data: Data, share: float, classes: int = 10, seed: int = 0) -> Data:
    """Returns the data with a share of the training labels made wrong, each of the others alike.

    Args:
        data: labeled images; the test labels stay right.
        share: of all labels, 0 to 1.
        classes: how many there are.
        seed: decides which labels, and which wrong ones they become.
    """
    rng = np.random.default_rng(seed)
    labels = np.array(data.train.labels)
    wrong: Any = rng.choice(len(labels), round(share * len(labels)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return data._replace(train=data.train._replace(labels=labels))
