"""The temporal order problem: remember which two symbols came, and in which order.

A sequence is of distractors but for two symbols, each A or B; one comes between a tenth and a fifth
of the length, the other between four and five tenths. Which of AA, AB, BA and BB they were is asked
at the end. By Hochreiter & Schmidhuber (1997, task 6a); Pascanu et al. (2012) pose it to SGD.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.tasks.network import OfNetwork
from experiments.training.config import Params
from experiments.training.data import Data

SYMBOLS = 6  # A, B, and four distractors
CLASSES = 4


class Sequences(NamedTuple):
    """Sequences of symbols u8[n, length] and their classes u8[n]."""

    symbols: Any
    classes: Any


class Rnn(nnx.Module):
    """A recurrent net of tanh units, read out at the end."""

    def __init__(self, units: int, radius: float, rngs: nnx.Rngs):
        scaled = nnx.initializers.orthogonal(radius)
        small = nnx.initializers.normal(0.1)
        self.inputs = nnx.Linear(SYMBOLS, units, kernel_init=small, rngs=rngs)
        self.recurrent = nnx.Linear(units, units, use_bias=False, kernel_init=scaled, rngs=rngs)
        self.output = nnx.Linear(units, CLASSES, kernel_init=small, rngs=rngs)

    def __call__(self, symbols: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, classes] of symbols i32[batch, length]."""

        def step(state: jax.Array, inputs: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(self.recurrent(state) + inputs), None

        inputs = self.inputs(jax.nn.one_hot(symbols.T, SYMBOLS))
        state, _ = jax.lax.scan(step, jnp.zeros_like(inputs[0]), inputs)
        return self.output(state)


@dataclasses.dataclass(frozen=True)
class TemporalOrder(OfNetwork):
    """Softmax cross-entropy of the recurrent net, scored by its accuracy.

    Attributes:
        length: how long a sequence is.
        units: how many the net has.
        radius: the spectral radius of its first recurrent weights.
        sequences: how many there are to learn from.
    """

    length: int = 20
    units: int = 50
    radius: float = 1.0
    sequences: int = 20_000

    def data(self, folder: Path | None = None) -> Data:
        """Returns sequences to learn from, and a thousand others to be tested on."""
        rng = np.random.default_rng(self.length)
        return Data(train=draw(rng, self.sequences, self.length), test=draw(rng, 1000, self.length))

    def loss(self, params: Params, batch: Sequences) -> jax.Array:
        """Returns the mean cross-entropy f32[] of a batch."""
        classes = batch.classes.astype(jnp.int32)
        logits = self.logits(params, batch.symbols)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    def score(self, params: Params, test: Sequences) -> jax.Array:
        """Returns the accuracy f32[] on the test sequences."""
        right = self.logits(params, test.symbols).argmax(-1) == test.classes.astype(jnp.int32)
        return jnp.mean(right, dtype=jnp.float32)

    def logits(self, params: Params, symbols: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, classes] of symbols u8[batch, length]."""
        return self.network(params)(symbols.astype(jnp.int32))

    def model(self, rngs: nnx.Rngs) -> Rnn:
        """Returns the net with new parameters."""
        return Rnn(self.units, self.radius, rngs)


def draw(rng: np.random.Generator, count: int, length: int) -> Sequences:
    """Returns `count` sequences of `length` symbols, drawn at random."""
    symbols = rng.integers(2, SYMBOLS, (count, length), dtype=np.uint8)
    first, second = rng.integers(0, 2, (2, count), dtype=np.uint8)
    rows = np.arange(count)
    symbols[rows, rng.integers(length // 10, length // 5, count)] = first
    symbols[rows, rng.integers(2 * length // 5, length // 2, count)] = second
    return Sequences(symbols, 2 * first + second)
