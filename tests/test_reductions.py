"""Reductions: right on one device and on several, and without anything large on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.reductions import lean_maximum, lean_sum, number, sum_and_number


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (1024,), (7, 1024), (3, 1000, 11), (2**21,)])
def test_reductions_sum_and_number(monkeypatch, devices, shape):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x = np.random.default_rng(0).uniform(0.5, 1, shape).astype(np.float32)
    total, marked = jax.jit(lambda x: sum_and_number(x, x > 0.75))(x)
    np.testing.assert_allclose(total, np.sum(x, dtype=np.float64), rtol=1e-6)
    assert float(marked) == np.sum(x > 0.75)
    np.testing.assert_allclose(lean_sum(jnp.asarray(x)), np.sum(x, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_reductions_one_nan_is_seen_in_a_sum(monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert np.isnan(lean_sum(jnp.ones(3000).at[2999].set(jnp.nan)))


def test_reductions_lean_maximum():
    x = np.random.default_rng(0).integers(0, 2**31 - 1, (5, 70, 3), dtype=np.int32)
    for axes in ((), (0,), (1, 2), (0, 1, 2)):
        np.testing.assert_array_equal(lean_maximum(jnp.asarray(x), axes), np.max(x, axes))
    assert int(lean_maximum(jnp.zeros((0,), jnp.int32), (0,))) == 0


@pytest.mark.parametrize(
    "reduction", [lambda x: lean_sum(x * x), lambda x: sum_and_number(x, x > 1)]
)
def test_reductions_write_nothing_large(monkeypatch, reduction):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x = jnp.ones((1024, 1024))
    compiled = jax.jit(reduction).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * x.nbytes


def test_reductions_count_beyond_an_int32():
    assert jax.eval_shape(number, jax.ShapeDtypeStruct((10**6, 10**6), bool)).dtype == jnp.float32
    assert float(number(jnp.ones((3, 4), bool))) == 12
