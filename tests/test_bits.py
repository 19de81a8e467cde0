"""Arithmetic on bits, against NumPy in float64, which flushes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import bits
from tests.helpers import same_bits

SPECIAL = np.float32([0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 1.1754942e-38, 1.1754944e-38])


def numbers() -> np.ndarray:
    """float32 numbers of every exponent, many of them subnormal, without nan."""
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    subnormal = rng.integers(0, 2**23, 5_000, dtype=np.uint32)
    x = np.concatenate([np.concatenate([anything, subnormal]).view(np.float32), SPECIAL])
    return x[~np.isnan(x)]


def test_bits_powers_of_two_are_exact_into_and_out_of_the_subnormal_numbers():
    x = numbers()
    times = jax.jit(bits.times_power_of_two)
    for e in (-252, -149, -127, -23, -1, 0, 1, 24, 149, 252):
        with np.errstate(over="ignore"):
            expected = np.ldexp(x.astype(np.float64), e).astype(np.float32)
        assert same_bits(times(x, jnp.int32(e)), expected), e


def test_bits_exponents_are_those_of_frexp():
    x = numbers()
    expected = np.where(np.isfinite(x), np.frexp(x.astype(np.float64))[1], 0)
    np.testing.assert_array_equal(jax.jit(bits.exponent)(x), expected)


def test_bits_magnitudes_are_in_the_order_of_the_numbers():
    x = numbers()
    x = x[np.isfinite(x)]
    order = np.argsort(np.asarray(jax.jit(bits.magnitude)(x)), kind="stable")
    assert np.all(np.diff(np.abs(x[order].astype(np.float64))) >= 0)
    nan, infinity = bits.magnitude(jnp.array([np.nan, np.inf], jnp.float32))
    assert nan > infinity


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_bits_powers_of_two_are_linear(dtype):
    x = jnp.array([3.0, -5.0], dtype)
    out, push = jax.vjp(lambda x: bits.times_power_of_two(x, jnp.int32(3)), x)
    np.testing.assert_array_equal(out, 8 * x)
    np.testing.assert_array_equal(push(out)[0], 64 * x)
