"""Small models in the frameworks."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .models import LABELS, SEQUENCES, VECTORS, Model, cross_entropy


def in_cast(loss: Callable) -> Callable:
    """Lets a framework's own code promote as it likes."""

    def relaxed(*arguments: Any) -> Any:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return loss(*arguments)

    return relaxed


def linen() -> Model:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            h = nn.LayerNorm(param_dtype=x.dtype)(x)
            return x + nn.tanh(nn.Dense(5, param_dtype=x.dtype)(h)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )
            x, _ = stack()(x, None)
            x = nn.RNN(nn.GRUCell(4, param_dtype=x.dtype))(x[None])[0]
            return nn.Dense(3, param_dtype=x.dtype)(x[-1])

    net = Net()
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        params = net.init(jax.random.key(0), jnp.asarray(SEQUENCES[0], jnp.float32))
    loss = in_cast(lambda p, x, y: cross_entropy(net.apply(p, x), y))
    return Model(loss, jax.tree.map(np.asarray, params), (SEQUENCES, LABELS))


def nnx_scanned() -> Model:
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(5, 5, rngs=rngs)

        def __call__(self, x):
            return x + jnp.tanh(self.dense(x))

    @nnx.split_rngs(splits=2)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def blocks(rngs):
        return Block(rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    @nnx.remat
    def stack(block, x):
        return block(x)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        rngs = nnx.Rngs(0)
        model = {"blocks": blocks(rngs), "conv": nnx.Conv(5, 4, (3,), rngs=rngs)}
        model = nnx.Dict(
            **model,
            norm=nnx.GroupNorm(4, 2, use_fast_variance=False, rngs=rngs),
            out=nnx.Linear(4, 3, rngs=rngs),
        )
    graph, params = nnx.split(model)

    def loss(params, x, y):
        model = nnx.merge(graph, params)
        x = jnp.tanh(model["norm"](model["conv"](stack(model["blocks"], x))))
        return cross_entropy(model["out"](x.mean(0)), y)

    return Model(in_cast(loss), jax.tree.map(np.asarray, params), (SEQUENCES, LABELS))


def equinox() -> Model:
    net = eqx.nn.MLP(5, 3, 6, 2, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    loss = in_cast(lambda p, x, y: cross_entropy(eqx.combine(p, static)(x), y))
    return Model(loss, jax.tree.map(np.asarray, params), (VECTORS, LABELS))


def haiku() -> Model:
    def net(x):
        x = hk.Sequential([hk.Conv1D(4, 3), jax.nn.relu, hk.LayerNorm(-1, True, True)])(x)
        return hk.Linear(3)(x.mean(0))

    pure = hk.without_apply_rng(hk.transform(net))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        params = pure.init(jax.random.key(0), jnp.asarray(SEQUENCES[0], jnp.float32))
    loss = in_cast(lambda p, x, y: cross_entropy(pure.apply(p, x), y))
    return Model(loss, jax.tree.map(np.asarray, params), (SEQUENCES, LABELS))
