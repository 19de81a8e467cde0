"""Small networks at random, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclip import per_example

from .helpers import FAST, close

LAYERS = ("dense", "transposed", "again", "bias", "scale", "norm", "scan", "remat", "lookup")


def apply(name, p, x):
    """One layer on `[positions, 3]`; some share their parameters with others."""
    if name == "dense":
        return jnp.tanh(x @ p["w"])
    if name == "transposed":
        return jnp.sin(x @ p["w"].T)
    if name == "again":
        return x + x @ p["w"] @ p["w"]
    if name == "bias":
        return jnp.tanh(x + p["b"][None])
    if name == "scale":
        return x * p["b"][None] * p["w"][0, 0]
    if name == "norm":
        return x @ (p["w"] / jnp.linalg.norm(p["w"]))
    if name == "scan":
        return jax.lax.scan(lambda h, x: (jnp.tanh(h @ p["w"] + x), h), p["b"], x)[1]
    if name == "remat":
        return jax.checkpoint(lambda x: jnp.tanh(x @ p["v"] + p["b"][None]))(x)
    return x + p["v"][jnp.argmax(x, 0)][: x.shape[0]]


@pytest.mark.wide
@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4),
    st.sampled_from(["auto", "gram", "matrices"]),
    st.integers(1, 3),
)
def test_random_networks(names, form, positions):
    def loss(p, x):
        for name in names:
            x = apply(name, p, x)
        return jnp.sum(x**2) + jnp.sum(x @ p["v"])

    with jax.enable_x64(True):
        rng = np.random.default_rng(len(names))
        params = {k: jnp.array(rng.normal(size=s)) for k, s in (("w", (3, 3)), ("v", (3, 3)))}
        params["b"] = jnp.array(rng.normal(size=3))
        x = jnp.array(rng.normal(size=(3, positions, 3)))
        ways = ({"form": form}, {"strategy": "vmap"})
        clips = [per_example.clipped_grad(loss, 2.0, **options) for options in ways]
        auto, wanted = (jax.jit(clip, compiler_options=FAST)(params, x) for clip in clips)
        close(auto, wanted, 1e-12)
