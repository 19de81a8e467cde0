"""Levanter: Equinox, blocks stacked over layers and scanned, steps skipped by their loss."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from jaxclip import measures
from tests.adoption import problem

LAYERS = 3


class Network(eqx.Module):
    """Blocks whose parameters are `[layer, ...]`, and a head."""

    blocks: eqx.nn.Linear
    head: eqx.nn.Linear
    name: str = eqx.field(static=True, default="small")

    def __init__(self, key):
        keys = jax.random.split(key, LAYERS)
        self.blocks = eqx.filter_vmap(lambda k: eqx.nn.Linear(8, 8, key=k))(keys)
        self.head = eqx.nn.Linear(8, 1, key=key)

    def __call__(self, x):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        def block(x, layer):
            return x + jnp.tanh(eqx.combine(layer, static)(x)), None

        return self.head(jax.lax.scan(block, x, arrays)[0])


def loss(model, x, y):
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def train(tx):
    model = Network(jax.random.key(0))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x, y):
        value, grads = eqx.filter_value_and_grad(loss)(model, x, y)
        trained = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, trained, value=value)
        return eqx.apply_updates(model, updates), state

    history = []
    for x, y in problem.BATCHES:
        model, state = step(model, state, x, y)
        history.append(eqx.filter(model, eqx.is_inexact_array))
    return history, state


def skip_step(inner, window, sigma):
    """Skips a step whose loss or norm is beyond mean and deviations of those seen so far."""

    def init(params):
        return inner.init(params), jnp.full((2, window), jnp.nan), jnp.zeros((), jnp.int32)

    def update(updates, state, params, *, value, **extra):
        inner_state, seen, count = state
        now = jnp.stack([value, optax.tree.norm(updates)])
        mean, deviation = jnp.nanmean(seen, 1), jnp.nanstd(seen, 1, ddof=1)
        spike = (count >= window // 2) & jnp.any(now > mean + sigma * deviation)
        new, after = inner.update(updates, inner_state, params)
        new = jax.tree.map(lambda u: jnp.where(spike, 0, u), new)
        kept = jax.tree.map(lambda a, b: jnp.where(spike, a, b), inner_state, after)
        seen = jnp.where(spike, seen, seen.at[:, count % window].set(now))
        return new, (kept, seen, count + jnp.where(spike, 0, 1))

    return optax.GradientTransformationExtraArgs(init, update)


def test_levanter_skips_by_the_loss():
    theirs, _ = train(skip_step(optax.adam(0.01), window=4, sigma=6.0))
    ours, state = train(jaxclip.skip_on_spike(optax.adam(0.01), window=4, sigma=6.0))
    for found, wanted in zip(ours, theirs, strict=True):
        problem.same(found, wanted)
    problem.same(ours[problem.SPIKE], ours[problem.SPIKE - 1])  # which is the step left out
    assert np.isclose(jaxclip.metrics(state)["skip_on_spike"].clip_rate, 1 / problem.STEPS)


def test_levanter_a_stacked_layer_is_clipped_as_it_is_alone():
    model = Network(jax.random.key(0))
    gradient = eqx.filter_jit(eqx.filter_grad(loss))(model, *problem.BATCHES[problem.SPIKE])

    def in_blocks(path, leaf):
        return (0,) if path[0].name == "blocks" else ()

    stacked = jaxclip.clip(measures.per_slice(in_blocks), 0.1)
    found, _ = jax.jit(stacked.update)(gradient, stacked.init(gradient))
    alone = jaxclip.clip_by_leaf_norm(0.1)
    clip_alone = jax.jit(alone.update)
    for k in range(LAYERS):
        layer = jax.tree.map(lambda x, k=k: x[k], gradient.blocks)
        wanted, _ = clip_alone(layer, alone.init(layer))
        problem.same(jax.tree.map(lambda x, k=k: x[k], found.blocks), wanted)
        assert problem.apart(wanted, layer)
    wanted, _ = clip_alone(gradient.head, alone.init(gradient.head))
    problem.same(found.head, wanted)
