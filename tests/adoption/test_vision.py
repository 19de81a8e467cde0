"""big_vision and scenic: the batch over all devices, frozen parts, examples clipped one by one."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.adoption import problem

FROZEN = {"kernel": False, "bias": False, "output": True}


def spread(x):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return jax.device_put(x, NamedSharding(mesh, P("data")))


def big_vision(clip, freeze=True):
    """A chain under one mask: neither the norm nor the moments have the frozen parts."""
    tx = optax.chain(clip, optax.scale_by_adam(), optax.scale(-0.1))
    trained = {name: not frozen for name, frozen in FROZEN.items()}
    return optax.chain(optax.masked(optax.set_to_zero(), FROZEN), optax.masked(tx, trained))


def train(tx, gradient):
    params = problem.arrays()
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        updates, state = tx.update(gradient(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    for x, y in problem.BATCHES:
        params, state = step(params, state, spread(x), spread(y))
    return params, state


def test_big_vision_the_same_numbers():
    gradient = jax.grad(problem.loss)
    wanted, _ = train(big_vision(optax.clip_by_global_norm(0.3)), gradient)
    found, state = train(big_vision(jaxclip.clip_by_global_norm(0.3)), gradient)
    problem.same(found, wanted)
    problem.same(found["output"], problem.arrays()["output"])
    assert jaxclip.metrics(state)["clip"].clip_rate > 0


def example_loss(params, x, y):
    return jnp.mean((problem.predict(params, x) - y) ** 2)


def each_by_vmap(params, x, y):
    """As trainers do it: the gradient of every example is in memory at once."""
    grads = jax.vmap(jax.grad(example_loss), (None, 0, 0))(params, x, y)
    norms = jnp.sqrt(sum(jnp.sum(g.reshape(len(g), -1) ** 2, 1) for g in grads.values()))
    factors = jnp.minimum(1, 0.2 / norms)
    return {name: jnp.tensordot(factors, g, 1) / len(g) for name, g in grads.items()}


def test_scenic_every_example_is_clipped():
    def each(params, x, y):
        return jaxclip.clipped_grad(example_loss, 0.2)(params, x, y)[0]

    wanted, _ = train(optax.sgd(0.1, momentum=0.9), each_by_vmap)
    found, _ = train(optax.sgd(0.1, momentum=0.9), each)
    problem.same(found, wanted, rtol=1e-5)
    unclipped, _ = train(optax.sgd(0.1, momentum=0.9), jax.grad(problem.loss))
    assert problem.apart(found, unclipped)
