"""Singular values, against NumPy's decomposition in float64, over the whole range of a dtype."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import shrinks
from tests.helpers import same_bits

MAX, TINY = float(jnp.finfo(jnp.float32).max), float(jnp.finfo(jnp.float32).tiny)
METHODS = ("svd", "newton_schulz")
SHRINKS = {
    "hard": lambda s, t: np.minimum(s, t),
    "inverse_sqrt": lambda s, t: s / np.hypot(1, s / t),
}
# Shares of the largest; a limit of 0.3 lies at two of them, and beyond none.
SPECTRA = {
    "apart": (1, 0.5, 0.2, 0.01),
    "equal": (1, 1, 1, 1),
    "at the limit": (1, 0.3, 0.3, 0.1),
    "deficient": (1, 0.4, 0, 0),
    "rank one": (1, 0, 0, 0),
}
SHAPES = {"tall": (9, 4), "wide": (4, 9), "square": (4, 4)}


@functools.cache
def clipped(method: str, shrink: str = "hard", nonfinite: str = "propagate"):
    """The clip, one compilation a shape and dtype, of a limit given."""

    @jax.jit
    def run(x, limit):
        options = {"shrink": getattr(shrinks, shrink), "nonfinite": nonfinite}
        tx = jaxclip.clip_singular_values(limit, method=method, **options)
        out, state = tx.update(x, tx.init(x))
        return out, jaxclip.metrics(state)["clip"]

    return run


def with_spectrum(shape, spectrum, dtype=np.float64, seed=0):
    """A matrix of these singular values."""
    rng = np.random.default_rng(seed)

    def orthonormal(rows):
        entries = rng.normal(size=(rows, 4))
        if np.issubdtype(dtype, np.complexfloating):
            entries = entries + 1j * rng.normal(size=(rows, 4))
        return np.linalg.qr(entries)[0]

    return (orthonormal(shape[0]) * np.array(spectrum)) @ orthonormal(shape[1]).conj().T


def expected(x, limit, shrink="hard"):
    """What NumPy makes of a matrix, and the largest singular value, in double precision."""
    wide = np.complex128 if np.iscomplexobj(x) else np.float64
    left, values, right = np.linalg.svd(np.asarray(x, wide), full_matrices=False)
    return (left * SHRINKS[shrink](values, limit)) @ right, values[0]


@pytest.mark.wide
@pytest.mark.parametrize("shrink", SHRINKS)
@pytest.mark.parametrize("method", METHODS)
def test_spectral_is_the_decomposition_at_every_scale(method, shrink):
    run = clipped(method, shrink)
    sizes = [10.0**k for k in range(-34, 39, 6)] + [3e38]
    if method == "newton_schulz":  # by itself, as the measure of `svd` knows no subnormal norm
        sizes += [1e-38, 1e-37]
    for shape, spectrum, size in itertools.product(SHAPES.values(), SPECTRA.values(), sizes):
        x = (size * with_spectrum(shape, spectrum)).astype(np.float32)
        limit = float(np.float32(0.3 * size))
        out, _ = run(x, jnp.float32(limit))
        wanted, largest = expected(x, limit, shrink)
        error = np.abs(np.asarray(out, np.float64) - wanted).max()
        assert error <= 3e-6 * largest + 2e-45, (shape, spectrum, size)


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", METHODS)
def test_spectral_of_other_dtypes(method, dtype):
    complex_ = jnp.issubdtype(dtype, jnp.complexfloating)
    sizes = (1e-3, 1.0, 1e3) + ((1e-30, 1e30, 3e38) if dtype != jnp.float16 else ())
    for size in sizes:
        shape = SHAPES["tall"]
        entries = with_spectrum(shape, SPECTRA["apart"], np.complex64 if complex_ else np.float32)
        x = jnp.asarray(size * entries, dtype)
        limit = float(np.float32(0.3 * size))
        out, _ = clipped(method)(x, jnp.float32(limit))
        wanted, largest = expected(np.asarray(x, np.complex64 if complex_ else np.float32), limit)
        assert out.dtype == dtype
        got = np.asarray(out, np.complex128 if complex_ else np.float64)
        tolerance = 3e-6 if complex_ else float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("shrink", SHRINKS)
@pytest.mark.parametrize("method", METHODS)
def test_spectral_no_singular_value_exceeds_a_limit_however_far_below(method, shrink):
    x = with_spectrum((9, 4), SPECTRA["apart"])
    for size, limit in itertools.product((1.0, 1e19, 3e38), (1e-37, 1e-10, 1e-4)):
        out, _ = clipped(method, shrink)((size * x).astype(np.float32), jnp.float32(limit))
        largest = np.linalg.norm(np.asarray(out, np.float64) / limit, 2)
        assert 0.99 <= largest <= 1 + 1e-6, (size, limit)


@pytest.mark.parametrize("shrink", SHRINKS)
@pytest.mark.parametrize("method", METHODS)
def test_spectral_a_limit_beyond_everything_changes_no_bit(method, shrink):
    run = clipped(method, shrink)
    for size in (1e-40, 1e-20, 1.0, 1e19, 2e38):
        x = (size * with_spectrum((4, 4), SPECTRA["apart"])).astype(np.float32)
        limits = [np.inf] + [limit for limit in (1e20, MAX) if limit > 1e5 * size]
        for limit in limits + ([1.2 * size] if shrink == "hard" and size > TINY else []):
            out, metrics = run(x, jnp.float32(limit))
            assert same_bits(out, x), (size, limit)
            assert float(metrics.clipped) == 0
            assert float(metrics.clip_rate) == 0
    zero = np.zeros((4, 4), np.float32)
    for limit in (0.0, 1.0, np.inf):
        assert same_bits(run(zero, jnp.float32(limit))[0], zero)
    assert not np.any(run(np.ones((4, 4), np.float32), jnp.float32(0))[0])


@pytest.mark.parametrize("method", METHODS)
def test_spectral_counts_what_is_beyond_the_limit(method):
    for shape, spectrum in itertools.product(SHAPES.values(), SPECTRA.values()):
        x = with_spectrum(shape, spectrum).astype(np.float32)
        _, metrics = clipped(method)(x, jnp.float32(0.25))
        np.testing.assert_allclose(metrics.clipped, np.mean(np.array(spectrum) > 0.25), rtol=1e-6)
        np.testing.assert_allclose(metrics.norm, np.sqrt(np.mean(np.square(spectrum))), rtol=1e-6)
        np.testing.assert_allclose(metrics.limit, 0.25, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_spectral_means_the_limits_over_singular_values(method):
    gradient = {"w": jnp.ones((3, 3)), "b": jnp.ones(3), "empty": jnp.ones((3, 0))}
    tx = jaxclip.clip_singular_values({"w": 1.0, "b": 2.0, "empty": None}, method=method)
    _, state = jax.jit(tx.update)(gradient, tx.init(gradient))
    np.testing.assert_allclose(jaxclip.metrics(state)["clip"].limit, np.sqrt(7 / 4), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_spectral_nan_and_infinity_and_a_limit_of_nan(method):
    x = np.ones((4, 4), np.float32)
    for nonfinite, wanted in (("propagate", np.nan), ("zero", 0)):
        run = clipped(method, nonfinite=nonfinite)
        for bad in (np.nan, np.inf):
            x[1, 2] = bad
            out, metrics = run(x, jnp.float32(0.5))
            np.testing.assert_array_equal(out, np.full((4, 4), wanted))
            assert int(metrics.nonfinite) == 1
            assert float(metrics.clipped) == 0


def test_spectral_a_singular_value_beyond_every_number_is_not_finite():
    x = np.full((3, 3), 2e38, np.float32) + np.diag(np.float32([1e38, 0, 0]))
    out, metrics = clipped("svd", nonfinite="zero")(x, jnp.float32(0.5))
    np.testing.assert_allclose(np.linalg.svd(out)[1], [0.5, 0.5, 0], atol=1e-6)
    assert int(metrics.nonfinite) == 1
    assert np.all(np.isnan(clipped("svd")(x, jnp.float32(0.5))[0]))


def test_spectral_products_of_a_limit_of_nan():
    x = np.ones((4, 4), np.float32)
    for nonfinite, wanted in (("propagate", np.nan), ("zero", 0)):
        out, metrics = clipped("newton_schulz", nonfinite=nonfinite)(x, jnp.float32(np.nan))
        np.testing.assert_array_equal(out, np.full((4, 4), wanted))
        assert float(metrics.clipped) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (0, 2, 3), (), (1, 1), (2, 3, 0)])
def test_spectral_of_shapes_without_entries_or_without_axes(method, shape):
    x = jnp.ones(shape)
    tx = jaxclip.clip_singular_values(0.5, method=method)
    out, state = tx.update(x, tx.init(x))
    np.testing.assert_allclose(out, 0.5 * np.ones(shape), rtol=1e-6)
    assert np.isfinite(jaxclip.metrics(state)["clip"].norm)


@pytest.mark.parametrize("method", METHODS)
def test_spectral_slopes_are_finite_where_nothing_can_be_told_apart(method):
    def total(x):
        return jnp.sum(clipped(method)(x, jnp.float32(0.5))[0])

    for x in (np.zeros((3, 3)), np.eye(3), np.ones((3, 3)), 1e30 * np.eye(3)):
        assert np.all(np.isfinite(jax.grad(total)(x.astype(np.float32))))
    x = np.float32(0.1) * np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(jax.grad(total)(x), np.ones((3, 3)), rtol=1e-5)
