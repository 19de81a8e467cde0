"""Projections of the parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.helpers import same_bits


def test_weights_within_the_limit_keep_their_update_bit_for_bit():
    params = jnp.array([0.1, 1e-9, 0.4])
    update = jnp.array([1e-9, 0.1, 0.2])
    tx = jaxclip.clip_weights(0.5)
    out, _ = tx.update(update, tx.init(params), params)
    assert same_bits(out[:2], update[:2])
    np.testing.assert_allclose(optax.apply_updates(params, out)[2], 0.5)


def test_weights_stay_within_over_a_training():
    tx = optax.chain(optax.sgd(0.3), jaxclip.clip_weights(0.25))
    params = jnp.linspace(-1, 1, 9)
    state = tx.init(params)
    for step in range(10):
        updates, state = tx.update(jnp.sin(7.0 * params + step), state, params)
        params = optax.apply_updates(params, updates)
        assert float(jnp.max(jnp.abs(params))) <= 0.25 * (1 + 1e-6)


def test_weights_by_fan_in_of_kernels_and_what_is_beside_them():
    params = {
        "dense": {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)},
        "conv": {"kernel": jnp.zeros((3, 3, 1, 2)), "bias": jnp.zeros(2)},
        "norm": {"scale": jnp.zeros(2)},
        "step": jnp.zeros(()),
    }
    far = {
        "dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
        "conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2)},
        "step": jnp.ones(()),
    }
    tx = jaxclip.clip_weights_by_fan_in(1.0)
    out, state = tx.update(far, tx.init(params), params)
    np.testing.assert_allclose(out["dense"]["kernel"], np.full((4, 2), 0.5), rtol=1e-6)
    np.testing.assert_allclose(out["dense"]["bias"], [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(out["conv"]["bias"], [1 / 3, 1 / 3], rtol=1e-6)
    assert same_bits(out["norm"], far["norm"])
    assert same_bits(out["step"], far["step"])
    assert float(jaxclip.metrics(state)["clip"].limit) == 1.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_weights_in_half_precision(dtype):
    params = jnp.linspace(-0.3, 0.3, 50, dtype=dtype)
    tx = jaxclip.clip_weights(0.3)
    out, _ = tx.update(jnp.full(50, 0.11, dtype), tx.init(params), params)
    ulps = 1 + 4 * float(jnp.finfo(dtype).eps)
    assert np.max(np.abs(np.asarray(optax.apply_updates(params, out), np.float64))) <= 0.3 * ulps


@pytest.mark.parametrize("method", [jaxclip.clip_weights, jaxclip.clip_weights_by_fan_in])
def test_weights_what_is_no_number_becomes_an_update_of_nan_or_zero(method):
    params = {"kernel": jnp.full((4, 2), 0.25)}
    update = {"kernel": jnp.full((4, 2), 0.125).at[1, 1].set(jnp.nan).at[2, 0].set(-jnp.inf)}
    bad = ~np.isfinite(update["kernel"])
    for nonfinite, wanted in (("propagate", np.nan), ("zero", 0.0)):
        tx = method(1.0, nonfinite=nonfinite)
        out, state = jax.jit(tx.update)(update, tx.init(params), params)
        np.testing.assert_array_equal(out["kernel"], np.where(bad, wanted, update["kernel"]))
        assert int(jaxclip.metrics(state)["clip"].nonfinite) == 1


def test_weights_without_a_number_or_a_limit_get_no_update():
    """Whatever made it so: a limit of nan, or a norm beyond the range."""
    update, params = jnp.array([3e38], jnp.float32), jnp.array([0.2], jnp.float32)
    for method in (
        functools.partial(jaxclip.clip_weights, jnp.float32(np.nan)),
        functools.partial(jaxclip.clip_weights_by_fan_in, 0.5, fan_in=lambda path, x: 4),
    ):
        for nonfinite, expected in (("zero", 0.0), ("propagate", np.nan)):
            tx = method(nonfinite=nonfinite)
            out, state = tx.update(update, tx.init(params), params)
            np.testing.assert_array_equal(out, [expected])
            assert int(jaxclip.metrics(state)["clip"].nonfinite) == 1
