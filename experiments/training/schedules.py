"""Schedules of a limit from its first value to its last over a training.

A shape is the share of the way that is behind, given the share of the time that is: 0 at 0, and 1
from 1 on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Shape = Callable[[jax.Array], jax.Array]


def linear(time: jax.Array) -> jax.Array:
    """Returns the share of the way of a straight line."""
    return time


def cosine(time: jax.Array) -> jax.Array:
    """Returns the share of the way of half a cosine wave: slow, fast, slow."""
    return (1 - jnp.cos(jnp.pi * time)) / 2


def step(time: jax.Array) -> jax.Array:
    """Returns the share of the way of a jump at the end."""
    return jnp.floor(time)


def schedule(shape: Shape, first: jax.Array, last: jax.Array, steps: jax.Array) -> optax.Schedule:
    """Returns the schedule that goes from `first` to `last` within `steps` steps, and stays there.

    Args:
        shape: one of the functions above.
        first: f32[], the value at step 0.
        last: f32[], the value at step `steps`.
        steps: f32[], how many steps that takes.
    """

    def value(count: jax.typing.ArrayLike) -> jax.Array:
        way = shape(jnp.minimum(jnp.asarray(count, jnp.float32) / steps, 1))
        # Exact at both ends, which `first + way * (last - first)` is not.
        return (1 - way) * first + way * last

    return value
