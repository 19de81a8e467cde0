"""Schedules of a number from its first value to its last over a training.

A shape is the share of the way that is behind, given the share of the time that is: 0 at 0, and 1
from 1 on. Which shape it is, is a number, so that one program holds trainings of several.
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


SHAPES: dict[str, Shape] = {"linear": linear, "cosine": cosine, "step": step}


def shape_number(name: str) -> int:
    """Returns the number of a shape in `SHAPES`."""
    return list(SHAPES).index(name)


def schedule(
    shape: jax.typing.ArrayLike, first: jax.Array, last: jax.Array, steps: jax.Array
) -> optax.Schedule:
    """Returns the schedule that goes from `first` to `last` within `steps` steps, and stays there.

    Args:
        shape: i32[], the number of the shape.
        first: f32[], the value at step 0; may be infinite.
        last: f32[], the value at step `steps`.
        steps: f32[], how many steps that takes.
    """

    def value(count: jax.typing.ArrayLike) -> jax.Array:
        time = jnp.minimum(jnp.asarray(count, jnp.float32) / steps, 1)
        way = jnp.stack([one(time) for one in SHAPES.values()])[shape]
        # Exact at both ends, which `first + way * (last - first)` is not.
        between = (1 - way) * first + way * last
        return jnp.where((way <= 0) | (first == last), first, jnp.where(way >= 1, last, between))

    return value


def rate_schedule(
    shape: jax.typing.ArrayLike,
    peak: jax.Array,
    last: jax.Array,
    warm_up: jax.Array,
    steps: int,
) -> optax.Schedule:
    """Returns the schedule of a learning rate: up to its peak on a straight line, then down.

    Args:
        shape: i32[], the number of the shape of the way down.
        peak: f32[], the largest rate.
        last: f32[], the share of it that is left after `steps` steps.
        warm_up: f32[], the share of the steps by which the peak is reached; from 0 to 1.
        steps: of the training.
    """
    up = warm_up * steps
    down = schedule(shape, peak, last * peak, jnp.maximum(steps - up, 1))

    def value(count: jax.typing.ArrayLike) -> jax.Array:
        now = jnp.asarray(count, jnp.float32)
        # The first step of a warm-up is a small one, not none at all.
        rising = jnp.minimum((now + 1) / jnp.maximum(up, 1), 1)
        return rising * down(jnp.maximum(now - up, 0))

    return value
