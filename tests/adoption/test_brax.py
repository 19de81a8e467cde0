"""brax: `pmap` over environments, gradients averaged over devices before the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

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


def clip_then_mean(g, **options):
    """The order of older versions, by which each device has a norm of its own."""
    tx = jaxclip.clip_by_global_norm(1.0, **options)
    return jax.lax.pmean(tx.update(g, tx.init(g))[0], "i")


def mean_then_clip(g):
    tx = jaxclip.clip_by_global_norm(1.0)
    return tx.update(jax.lax.pmean(g, "i"), tx.init(g))[0]


def on_devices(f, gradients):
    mesh = jax.make_mesh((DEVICES,), ("i",), axis_types=(AxisType.Auto,))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("i"), out_specs=P()))(gradients)


def test_brax_a_clip_before_the_mean_is_told():
    gradients = jnp.eye(DEVICES) * 4
    with pytest.raises(ValueError, match=r"varies over the mapped axis 'i'.*`axis_name=\(\)`"):
        on_devices(clip_then_mean, gradients)
    right = on_devices(mean_then_clip, gradients)
    np.testing.assert_allclose(np.linalg.norm(right), 1.0, rtol=1e-6)
    # Said to be meant, and under `pmap`, which tracks nothing, it is another gradient.
    meant = on_devices(lambda g: clip_then_mean(g, axis_name=()), gradients)
    np.testing.assert_allclose(np.linalg.norm(meant), DEVICES**-0.5, rtol=1e-6)
    by_pmap = jax.pmap(clip_then_mean, axis_name="i")(gradients)
    np.testing.assert_allclose(by_pmap[0], meant[0], rtol=1e-6)
