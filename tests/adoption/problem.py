"""A small regression that all trainers learn, with a batch of ten times the usual gradient."""

import jax
import jax.numpy as jnp
import numpy as np

WIDTH, HIDDEN, BATCH, STEPS = 8, 16, 16, 6
SPIKE = 4  # the step of the large batch

_RNG = np.random.default_rng(0)
X = np.float32(_RNG.normal(size=(STEPS, BATCH, WIDTH)))
Y = np.float32(np.tanh(X @ _RNG.normal(size=(WIDTH, 1))))
Y[SPIKE] *= 30
BATCHES = list(zip(X, Y, strict=True))


def arrays(seed: int = 1) -> dict[str, jax.Array]:
    """Parameters of two layers."""
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(WIDTH, HIDDEN)) / 3, jnp.float32),
        "bias": jnp.zeros(HIDDEN),
        "output": jnp.asarray(rng.normal(size=(HIDDEN, 1)) / 4, jnp.float32),
    }


def predict(params: dict, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["kernel"] + params["bias"]) @ params["output"]


def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((predict(params, x) - y) ** 2)


def same(a, b, rtol: float = 2e-6) -> None:
    """Asserts that two trees hold the same numbers."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6)


def apart(a, b) -> bool:
    """Whether two trees differ by more than rounding."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(float(jnp.max(jnp.abs(x - y))) > 1e-3 for x, y in pairs)
