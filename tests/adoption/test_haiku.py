"""Haiku: parameters by module and name, and the last layer left out of AGC, as NFNets have it."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import jaxclip
from tests.adoption import problem

NETWORK = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([problem.HIDDEN, 1])(x)))


def loss(params, x, y):
    return jnp.mean((NETWORK.apply(params, x) - y) ** 2)


def train(clip):
    params = NETWORK.init(jax.random.key(0), problem.X[0])
    not_last = hk.data_structures.map(lambda module, name, x: "linear_1" not in module, params)
    tx = optax.chain(optax.masked(clip, not_last), optax.sgd(0.1, momentum=0.9))
    state, update = tx.init(params), jax.jit(tx.update)
    for x, y in problem.BATCHES:
        updates, state = update(jax.grad(loss)(params, x, y), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_haiku_the_same_numbers():
    wanted, _ = train(optax.adaptive_grad_clip(0.01, eps=1e-3))
    found, state = train(jaxclip.adaptive_grad_clip(0.01, eps=1e-3))
    problem.same(found, wanted)
    assert jaxclip.metrics(state)["clip"].clip_rate > 0
