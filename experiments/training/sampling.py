"""How the examples of an epoch come into batches.

A sampler returns, of a key, the number of examples, the steps of the epoch and the size of a batch,
the rows i32[steps, size] of every batch, and a mask bool[steps, size] that is False for padding, or
None where there is none.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Batches = tuple[jax.Array, jax.Array | None]
Sampler = Callable[[jax.Array, int, int, int], Batches]


def shuffle(key: jax.Array, examples: int, steps: int, batch_size: int) -> Batches:
    """Returns every example once, in a random order; an incomplete last batch is dropped."""
    order = jax.random.permutation(key, examples)
    return order[: steps * batch_size].reshape(steps, batch_size), None


@dataclasses.dataclass(frozen=True)
class Poisson:
    """Every example is in each batch with the same probability, whatever the others are.

    Attributes:
        room: the number of examples that the arrays of a batch have room for; more are dropped.
    """

    room: int

    def __call__(self, key: jax.Array, examples: int, steps: int, batch_size: int) -> Batches:
        """Returns batches of `batch_size` examples in expectation."""
        probability = batch_size / examples
        return jax.lax.map(
            lambda key: sample(key, examples, probability, self.room),
            jax.random.split(key, steps),
        )


def sample(
    key: jax.Array, examples: int, probability: float, room: int
) -> tuple[jax.Array, jax.Array]:
    """Returns a Poisson sample: rows i32[room], and a mask bool[room], False for padding."""
    # "low" rounds the probability to 23 bits, and then it is not quite the one accounted for.
    drawn = jax.random.bernoulli(key, probability, (examples,), mode="high")
    [rows] = jnp.nonzero(drawn, size=room, fill_value=0)
    return rows, jnp.arange(room) < jnp.sum(drawn)
