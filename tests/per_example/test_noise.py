"""The noise scale is that of the examples, and of two batch sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import clipped_grad
from jaxclip.per_example import noise_scale

from .helpers import FAST


def loss(p, x):
    return jnp.sum(p["a"] * x[:3]) + jnp.sum(p["b"] * x[3:])


PARAMS = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
MEAN, DEVIATION = np.array([1.0, -1.0, 0.5, 2.0, 0.0]), np.array([1.0, 2.0, 3.0, 0.5, 4.0])


def measured(x, limits=None, mask=None):
    def run(x):
        gradient, info = clipped_grad(loss, limits)(PARAMS, x, example_mask=mask)
        return noise_scale(info, gradient, mask)

    return jax.jit(run, compiler_options=FAST)(jnp.array(x, jnp.float32))


def draw(seed, size):
    return MEAN + DEVIATION * np.random.default_rng(seed).normal(size=(size, 5))


def test_it_is_the_variance_of_the_examples():
    x = draw(0, 7)
    found = measured(x)
    trace = x.var(0, ddof=1).sum()
    assert found.trace == pytest.approx(trace, rel=1e-5)
    assert found.square == pytest.approx(np.sum(x.mean(0) ** 2) - trace / 7, rel=1e-5)
    assert found.scale == pytest.approx(found.trace / found.square)


def test_blocks_and_a_mask():
    x = draw(1, 9)
    x[7:] = 1e9
    found = measured(x, {"a": None, "b": None}, jnp.arange(9) < 7)
    for name, part in (("a", x[:7, :3]), ("b", x[:7, 3:])):
        assert found.trace[name] == pytest.approx(part.var(0, ddof=1).sum(), rel=1e-5)


def test_two_batch_sizes_agree_on_average():
    x = np.stack([draw(seed, 16) for seed in range(200)])

    def of_batch(x):
        gradient, info = clipped_grad(loss, None)(PARAMS, x)
        return noise_scale(info, gradient)

    many = jax.jit(jax.vmap(of_batch), compiler_options=FAST)(jnp.array(x, jnp.float32))
    trace, square = (float(np.mean(part)) for part in many)
    small, large = (np.mean(np.sum(x.reshape(-1, size, 5).mean(1) ** 2, 1)) for size in (4, 64))
    assert trace == pytest.approx((small - large) / (1 / 4 - 1 / 64), rel=0.1)
    assert square == pytest.approx((64 * large - 4 * small) / (64 - 4), rel=0.1)
    assert trace / square == pytest.approx(np.sum(DEVIATION**2) / np.sum(MEAN**2), rel=0.1)


def test_one_example_has_no_variance():
    with pytest.raises(ValueError, match="two at least"):
        measured(draw(0, 1))
