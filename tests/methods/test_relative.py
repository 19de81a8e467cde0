"""Limits relative to the parameters, at the edges of what numbers can be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.helpers import same_bits


@functools.cache
def clippy(nonfinite="propagate"):
    @jax.jit
    def run(updates, params, relative, absolute):
        tx = jaxclip.clippy(relative, absolute, nonfinite=nonfinite)
        out, state = tx.update(updates, tx.init(params), params)
        return out, jaxclip.metrics(state)["clip"]

    return run


@pytest.mark.parametrize(
    "shape", [(5,), (1, 5), (5, 1), (1, 1, 5), (1, 1, 1, 5), (3, 5), (2, 3, 4, 5)]
)
def test_relative_units_are_those_of_optax(shape):
    """A kernel `[1, n]` is a vector; one of rank 3 Optax cuts against its own docstring."""
    rng = np.random.default_rng(0)
    params, grads = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    ours, theirs = jaxclip.adaptive_grad_clip(0.1), optax.adaptive_grad_clip(0.1)
    out, _ = jax.jit(ours.update)(grads, ours.init(params), params)
    expected, _ = jax.jit(theirs.update)(grads, theirs.init(params), params)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_relative_clippy_measures_complex_parameters_by_their_modulus():
    updates = jnp.array([1 + 1j, 0.1j], jnp.complex64)
    params = jnp.array([3 - 4j, 10j], jnp.complex64)
    out, _ = clippy()(updates, params, jnp.float32(0.1), jnp.float32(0))
    np.testing.assert_allclose(out, np.asarray(updates) * 0.5 / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1.0, 1e19, 3e38])
@pytest.mark.parametrize("weight", [0.0, 1e-38, 1e-20, 1.0, 1e19, 3e38])
def test_relative_clippy_never_moves_a_parameter_beyond_its_bound(weight, size):
    params, updates = np.float32([weight, 1, -weight]), np.float32([size, 0.5, 0.1])
    for absolute in (0.0, 1e-7):
        out, metrics = clippy()(updates, params, jnp.float32(0.1), jnp.float32(absolute))
        bound = 0.1 * np.abs(params.astype(np.float64)) + absolute
        moved = np.abs(np.asarray(out, np.float64))
        assert np.all(moved <= bound * (1 + 1e-6) + 1.2e-38)
        assert np.isfinite(metrics.norm)
        wide = updates.astype(np.float64)
        with np.errstate(divide="ignore"):
            factor = min(1, np.min(bound / wide))
        np.testing.assert_allclose(out, wide * factor, rtol=1e-5, atol=1.2e-38)


def test_relative_clippy_and_numbers_that_are_none():
    params, updates = jnp.zeros(2), jnp.array([1.0, 2.0])
    out, _ = clippy()(updates, params, jnp.float32(np.inf), jnp.float32(0))
    assert same_bits(out, updates)  # unlimited, of a parameter of 0 as well
    for nonfinite, wanted in (("propagate", np.nan), ("zero", 0.0)):
        run = clippy(nonfinite)
        out, _ = run(updates, params, jnp.float32(np.nan), jnp.float32(0))
        np.testing.assert_array_equal(out, np.full(2, wanted))
        for bad in (np.nan, np.inf):
            out, metrics = run(updates.at[1].set(bad), params, jnp.float32(0.1), jnp.float32(0))
            np.testing.assert_array_equal(out, np.full(2, wanted))
            assert int(metrics.nonfinite) == 1
    assert not np.any(clippy()(updates, params, jnp.float32(-1), jnp.float32(0))[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_relative_hyperparameters_of_any_dtype(dtype):
    params, updates = jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.bfloat16)
    out, metrics = clippy()(updates, params, jnp.asarray(0.125, dtype), jnp.asarray(0, dtype))
    np.testing.assert_array_equal(out.astype(np.float32), [0.125, 0.125])
    assert metrics.norm.dtype == jnp.float32


def test_relative_clippy_holds_subnormal_entries_back_from_weights_of_zero():
    u, w = jnp.array([1e-40, 0.05], jnp.float32), jnp.array([0.0, 1.0])
    assert not np.any(np.asarray(clippy()(u, w, 0.1, 0.0)[0]))
