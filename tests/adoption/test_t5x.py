"""A t5x-like Adafactor: the clip of the update inside of the optimizer is one to be replaced."""

import functools

import jax
import optax
import pytest

import jaxclip
from tests.adoption import problem


def adafactor(clip, rate=0.1):
    """Adafactor, with the clip that Optax has built in made an argument."""
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=8),
        clip,
        optax.scale_by_learning_rate(rate, flip_sign=False),
        optax.scale_by_param_block_rms(),
        optax.scale(-1),
    )


def train(tx):
    params = problem.arrays()
    state, update = tx.init(params), jax.jit(tx.update)
    for x, y in problem.BATCHES:
        updates, state = update(jax.grad(problem.loss)(params, x, y), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_t5x_the_same_numbers(threshold):
    theirs = functools.partial(optax.adafactor, 0.1, min_dim_size_to_factor=8)
    wanted, _ = train(theirs(clipping_threshold=threshold))
    found, state = train(adafactor(jaxclip.clip_by_block_rms(threshold)))
    problem.same(found, wanted, rtol=1e-5)
    assert jaxclip.metrics(state)["clip"].clip_rate > 0
    assert problem.apart(found, train(theirs(clipping_threshold=None))[0])
