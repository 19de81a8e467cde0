"""Tunix and other NNX trainers: `nnx.Optimizer`, accumulated gradients, adapters alone trained."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jaxclip
from tests.adoption import problem


class Network(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(problem.WIDTH, problem.HIDDEN, rngs=rngs)
        self.adapter = nnx.LoRA(problem.HIDDEN, 2, problem.HIDDEN, rngs=rngs)
        self.head = nnx.Linear(problem.HIDDEN, 1, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.inner(x))
        return self.head(x + self.adapter(x))


def train(tx, wrt):
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.MultiSteps(tx, 2), wrt=wrt)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return jnp.mean((model(x) - y) ** 2)

        grads = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model)
        optimizer.update(model, grads)

    for x, y in problem.BATCHES:
        step(model, optimizer, x, y)
    return nnx.state(model, nnx.Param), optimizer


@pytest.mark.parametrize("wrt", [nnx.Param, nnx.LoRAParam])
def test_tunix_the_same_numbers(wrt):
    optimizers = [
        optax.chain(clip(0.1), optax.adamw(0.05))
        for clip in (optax.clip_by_global_norm, jaxclip.clip_by_global_norm)
    ]
    (wanted, _), (found, optimizer) = [train(tx, wrt) for tx in optimizers]
    problem.same(found, wanted)
    metrics = jaxclip.metrics(optimizer.opt_state)["clip"]
    assert metrics.clip_rate == 1
    assert jax.tree.leaves(metrics)[0].shape == ()
