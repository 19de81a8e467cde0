"""brax: `pmap` over environments, gradients averaged over devices before the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from tests.adoption import problem

DEVICES = 8


def gradient_update(tx, axis):
    """A function from a device's part of the batch to the next parameters, the same on all."""

    def update(params, state, x, y):
        grads = jax.lax.pmean(jax.grad(problem.loss)(params, x, y), axis)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return update


def train(tx):
    params = jax.tree.map(lambda x: jnp.stack([x] * DEVICES), problem.arrays())
    state = jax.pmap(tx.init)(params)
    step = jax.pmap(gradient_update(tx, "i"), axis_name="i")
    for x, y in problem.BATCHES:
        parts = [a.reshape(DEVICES, -1, a.shape[-1]) for a in (x, y)]
        params, state = step(params, state, *parts)
    return params, state


def test_brax_the_same_numbers():
    wanted, _ = train(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01)))
    found, state = train(optax.chain(jaxclip.clip_by_global_norm(0.5), optax.adam(0.01)))
    problem.same(found, wanted)
    for x in jax.tree.leaves((found, state)):
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))  # on every device
