"""Programs of any length run without recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import per_example

from .helpers import FAST, close

LENGTH = 400


def many_penalties(params, x):
    return x @ params["w"] + sum(jnp.sum(w * w) for w in params["others"])


def long_chain(params, x):
    w = params["w"]
    for _ in range(LENGTH):
        w = jnp.sin(w)
    return jnp.sum(w * x)


def long_reshaping(params, x):
    w = params["w"]
    for _ in range(LENGTH):
        w = w[None].reshape(2)
    return jnp.sum(w * x)


def long_constant_in_a_scan(params, x):
    def step(h, _):
        constant = jnp.ones(2)
        for _ in range(LENGTH):
            constant = jnp.sin(constant)
        return h + constant * params["w"], None

    return jnp.sum(jax.lax.scan(step, x, length=2)[0])


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(many_penalties, marks=pytest.mark.wide),
        long_chain,
        long_reshaping,
        long_constant_in_a_scan,
    ],
)
def test_a_long_program(loss):
    params = {
        "w": jnp.array([0.5, -1.0]),
        "others": [jnp.full(1, i / LENGTH) for i in range(LENGTH)],
    }
    x = jnp.array(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)
    params = params if loss is many_penalties else {"w": params["w"]}
    found, wanted = (
        jax.jit(per_example.clipped_grad(loss, 0.1, strategy=strategy), compiler_options=FAST)(
            params, x
        )
        for strategy in ("auto", "vmap")
    )
    close(found, wanted, 1e-5)
