"""Clipping by value, entry by entry against NumPy, which flushes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxclip
from tests.helpers import same_bits

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]
LIMITS = [0.0, 1e-45, 1e-41, 1e-38, 1.2e-38, 1e-7, 1.0, 6e4, 3.4e38, np.inf]


@functools.cache
def clipped(method, nonfinite="propagate"):
    @jax.jit
    def run(x, limit):
        tx = method(limit, nonfinite=nonfinite)
        out, state = tx.update(x, tx.init(x))
        return out, jaxclip.metrics(state)["clip"]

    return run


def every_kind(dtype, seed=0):
    """Numbers of every exponent, nan and infinity among them; of 16 bits all there are."""
    if jnp.finfo(dtype).bits == 16:
        return np.arange(2**16, dtype=np.uint16).view(dtype)
    rng = np.random.default_rng(seed)
    anything = rng.integers(0, 2**32, 4000, dtype=np.uint32)
    subnormal = rng.integers(0, 2**23, 1000, dtype=np.uint32)
    signs = rng.choice(np.uint32([0, 2**31]), 1000)
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1.1754944e-38]).view(np.uint32)
    return np.concatenate([anything, subnormal | signs, special]).view(np.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", [jaxclip.clip_by_value, jaxclip.u_clip])
def test_value_is_that_of_numpy_bit_for_bit(method, dtype):
    x = every_kind(dtype)
    wide = x.astype(np.float32)
    for limit in map(np.float32, LIMITS):
        out, _ = clipped(method, "zero")(x, limit)
        with np.errstate(over="ignore"):  # where nothing is beyond it
            at_limit = np.copysign(limit, wide).astype(dtype)
        wanted = np.where(np.abs(wide) <= limit, x, at_limit)
        wanted = np.where(np.isfinite(wide), wanted, np.zeros((), dtype))
        # Where the limit is 0 the sign of a zero is anyone's.
        assert same_bits(out, wanted) or (limit == 0 and not np.any(np.asarray(out)))
        kept, _ = clipped(method)(x, limit)
        assert same_bits(np.isnan(kept.astype(np.float32)), ~np.isfinite(wide))


def test_value_of_complex_entries_over_the_whole_range():
    rng = np.random.default_rng(0)
    z = np.stack([every_kind(jnp.float32), rng.permutation(every_kind(jnp.float32))], -1)
    z = z[np.all(np.isfinite(z), -1)].view(np.complex64)[:, 0]
    exact = z.astype(np.complex128)
    size = np.abs(exact)
    for limit in map(np.float32, LIMITS):
        out, _ = clipped(jaxclip.clip_by_value)(z, limit)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            wanted = np.where(size > limit, exact * (float(limit) / size), exact)
            wanted[size > jnp.finfo(jnp.float32).max] = np.nan  # a norm that is no float32
        within = size < float(limit) * (1 - 1e-6)
        assert same_bits(np.asarray(out)[within], z[within])
        np.testing.assert_allclose(np.isnan(out), np.isnan(wanted))
        defined = ~np.isnan(wanted)
        np.testing.assert_allclose(
            np.asarray(out, np.complex128)[defined], wanted[defined], rtol=1e-6, atol=2e-45
        )


def test_value_of_a_traced_limit_that_is_nan_or_negative():
    x = jnp.array([0.0, -1.0, 1e-40, 3e38], jnp.float32)
    for nonfinite, wanted in (("propagate", np.nan), ("zero", 0.0)):
        out, metrics = clipped(jaxclip.clip_by_value, nonfinite)(x, jnp.float32(np.nan))
        np.testing.assert_array_equal(out, np.full(4, wanted))
        assert float(metrics.clipped) == 0
    assert not np.any(clipped(jaxclip.clip_by_value)(x, jnp.float32(-1.0))[0])


def test_value_means_the_limits_over_entries():
    gradient = {"w": jnp.ones((3, 3)), "b": jnp.ones(3), "empty": jnp.ones((3, 0))}
    tx = jaxclip.clip_by_value({"w": 1.0, "b": 2.0, "empty": None})
    _, state = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(jaxclip.metrics(state)["clip"].limit, np.sqrt(21 / 12), rtol=1e-6)


def test_value_is_exported_of_any_shape():
    def update(x):
        tx = jaxclip.clip_by_value({"matrix": 1.0, "row": 2.0})
        tree = {"matrix": x, "row": x[0]}
        return tx.update(tree, tx.init(tree))

    shape = export.symbolic_shape("n, m")
    exported = export.export(jax.jit(update))(jax.ShapeDtypeStruct(shape, jnp.float32))
    out, state = exported.call(3 * jnp.ones((3, 5)))
    np.testing.assert_array_equal(out["matrix"], np.ones((3, 5)))
    np.testing.assert_allclose(
        jaxclip.metrics(state)["clip"].limit, np.sqrt((15 + 5 * 4) / 20), rtol=1e-6
    )


@pytest.mark.parametrize(
    "method",
    [jaxclip.clip_by_value, jaxclip.u_clip, jaxclip.clip_weights],
    ids=lambda m: m.__name__,
)
def test_value_of_more_entries_than_an_integer_counts(method):
    large = {
        "a": jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32),
        "b": jax.ShapeDtypeStruct((2**16, 2**16), jnp.bfloat16),
    }
    tx = method(1.0)
    out, state = jax.eval_shape(lambda g: tx.update(g, tx.init(g), g), large)
    assert jax.tree.map(lambda x: x.shape, out) == jax.tree.map(lambda x: x.shape, large)
    assert jaxclip.metrics(state)["clip"].clipped.dtype == jnp.float32


@pytest.mark.parametrize("devices", [1, 8])
def test_value_has_the_metrics_of_float64(monkeypatch, devices):
    """At every scale, with arrays that have limits far from each other's, and with what is bad."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(40, 60)), "b": rng.normal(size=(3000,)), "c": rng.normal()}

    @jax.jit
    def run(x, a, b):
        tx = jaxclip.clip_by_value({"a": a, "b": b, "c": None}, nonfinite="zero")
        return jaxclip.metrics(tx.update(x, tx.init(x))[1])["clip"]

    def check(x, a, b):
        metrics = run(jax.tree.map(jnp.asarray, x), jnp.float32(a), jnp.float32(b))
        limits = {"a": a, "b": b, "c": np.inf}
        sizes = {key: np.abs(np.asarray(x[key], np.float64)).ravel() for key in x}
        cut = {
            key: np.where(np.isfinite(s), np.minimum(s, limits[key]), 0) for key, s in sizes.items()
        }
        beyond = {key: np.isfinite(s) & (s > limits[key]) for key, s in sizes.items()}
        together = [np.concatenate(list(part.values())) for part in (cut, beyond)]
        np.testing.assert_allclose(
            metrics.clipped_norm, np.sqrt(np.mean(together[0] ** 2)), rtol=2e-6
        )
        np.testing.assert_allclose(metrics.clipped, np.mean(together[1]), rtol=1e-6)

    for size, a, b in [(1, 0.5, 2), (1e30, 1e-30, 1), (1e-30, 1e-31, np.inf), (1e25, 1, np.inf)]:
        check(jax.tree.map(lambda x, size=size: np.float32(size * x), x), a, b)
    bad = jax.tree.map(np.float32, x)
    bad["a"][3, 4], bad["b"][5] = np.nan, np.inf
    check(bad, 0.5, 2)
    check(jax.tree.map(np.zeros_like, bad), 0.5, 2)


def test_value_trains_side_by_side():
    """A `vmap` of trains that `scan` runs, as sweeps have it, clips as each train alone."""
    gradients = jnp.linspace(-2.0, 2.0, 12).reshape(3, 4)

    def train(limit):
        tx = jaxclip.clip_by_value(limit)
        init = tx.init(gradients[0])
        return jax.lax.scan(lambda state, g: tx.update(g, state)[::-1], init, gradients)[1]

    limits = jnp.array([0.5, 1.0, jnp.inf])
    together = jax.jit(jax.vmap(train))(limits)
    expected = [np.clip(np.asarray(gradients), -limit, limit) for limit in np.asarray(limits)]
    np.testing.assert_array_equal(together, expected)
