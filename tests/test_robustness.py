"""What the references lack: trains of spikes, nans, zeros and level shifts, and the equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.helpers import same_bits

RAW = {
    "zclip": functools.partial(jaxclip.zclip, limit=None, feed="raw"),
    "adagc": functools.partial(jaxclip.adagc, warmup=20, warmup_limit=np.inf, feed="raw"),
    "clip_by_norm_ratio": functools.partial(jaxclip.clip_by_norm_ratio, 1.05, feed="raw"),
    "limit_norm_growth": functools.partial(jaxclip.limit_norm_growth, feed="raw"),
    "spam_clip": functools.partial(jaxclip.spam_clip, 1.5, decay=0.98, feed="raw"),
    "drop_spikes": functools.partial(jaxclip.drop_spikes, 1.5, decay=0.98, feed="raw"),
    "autoclip": functools.partial(jaxclip.autoclip, 90.0, window=32),
    "clip_by_history": functools.partial(jaxclip.clip_by_history, window=32),
    "clip_by_quantile": functools.partial(jaxclip.clip_by_quantile, 0.9, initial=1.0),
}
HALF_LIFE = 35  # of a decay of 0.98, the slowest here


def run(tx, norms):
    """The clipped norms of a sequence of scalar gradients, and the states."""
    norms = jnp.asarray(norms, jnp.float32)

    @jax.jit
    def scanned(norms):
        def step(state, norm):
            out, state = tx.update(norm, state)
            return state, (jnp.abs(out), state)

        return jax.lax.scan(step, tx.init(jnp.float32(1)), norms)[1]

    outs, states = scanned(norms)
    return np.asarray(outs), states


def quiet(count, level=1.0, seed=0):
    return level * np.random.default_rng(seed).uniform(0.9, 1.1, count)


def memory(states, at):
    """All that a state remembers but step counters and metrics."""
    entries, _ = jax.tree_util.tree_flatten_with_path(states)
    return [x[at] for path, x in entries if "metrics" not in str(path) and "step" not in str(path)]


@pytest.mark.parametrize("name", RAW)
def test_robustness_a_level_shift_is_followed_within_ten_half_lives(name):
    norms = np.concatenate([quiet(100), quiet(10 * HALF_LIFE + 50, 2.0, seed=1)])
    outs, _ = run(RAW[name](), norms)
    assert outs[-50:].sum() > 0.9 * norms[-50:].sum()


@pytest.mark.parametrize("name", RAW)
def test_robustness_what_is_not_finite_teaches_nothing(name):
    norms = quiet(60)
    norms[[0, 5, 25, 40]] = [np.nan, np.inf, -np.inf, np.nan]
    outs, states = run(RAW[name](), norms)
    for at in (5, 25, 40):
        before, after = memory(states, at - 1), memory(states, at)
        assert same_bits(before, after)
        assert np.isnan(outs[at])
    assert np.isfinite(outs[[1, 6, 26, 41, 59]]).all()


@pytest.mark.parametrize("name", [n for n in RAW if n not in ("autoclip", "clip_by_quantile")])
def test_robustness_a_train_of_spikes_is_clipped_and_what_follows_is_not(name):
    norms = np.concatenate([quiet(80), [1000.0, 2000.0], quiet(200, seed=2)])
    outs, _ = run(RAW[name](), norms)
    if name != "limit_norm_growth":  # with the raw norm it is the second spike that is let through
        assert outs[80] < 10
    np.testing.assert_allclose(outs[-20:], norms[-20:], rtol=0.2)


@pytest.mark.parametrize("feed", ["raw", "clipped"])
@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("small", [0, 5e-4])
def test_robustness_a_zero_in_the_warm_up_of_adagc_does_not_freeze_the_array(small, feed, at):
    norms = np.concatenate([quiet(5), quiet(300, seed=3)])
    norms[at] = small
    outs, _ = run(jaxclip.adagc(warmup=10, feed=feed), norms)
    assert outs[-1] > 0.8


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (jaxclip.zclip, {}),
        (jaxclip.zclip, {"feed": "within_limit"}),
        (jaxclip.adagc, {}),
        (jaxclip.drop_spikes, {"feed": "within_limit"}),
        (functools.partial(jaxclip.clip_by_norm_ratio, 1.05), {}),
    ],
)
def test_robustness_zeros_late_in_a_training(make, published):
    """Most have learned from a thousand zeros that all else is an outlier; not from raw norms."""
    before, after = quiet(300, 0.5), quiet(3000, 0.5, seed=7)
    norms = np.concatenate([before, np.zeros(1000), after])
    outs, _ = run(make(**published), norms)
    assert outs[250:300].sum() > 0.95 * norms[250:300].sum()
    assert outs[-50:].sum() < 0.01 * after[-50:].sum()
    outs, _ = run(make(feed="raw"), norms)
    assert outs[1300 + 200 :].sum() > 0.95 * after[200:].sum()


def test_robustness_zclip_as_published_never_follows():
    norms = np.concatenate([quiet(25), quiet(1000, 2.0, seed=4)])
    outs, _ = run(jaxclip.zclip(limit=None), norms)
    assert outs[-1] < 1.3


def test_robustness_windows_that_are_not_full():
    norms = quiet(10)
    outs, states = run(jaxclip.clip_by_history(1.0, window=8), norms)
    np.testing.assert_array_equal(outs[:4], norms[:4].astype(np.float32))  # half of 8 are needed
    seen = jaxclip.metrics(states)["clip"].limit
    assert np.isinf(seen[:4]).all() and np.isfinite(seen[4:]).all()
    _, states = run(jaxclip.autoclip(25.0, window=4), norms)
    expected = [np.quantile(norms[max(0, k - 3) : k + 1], 0.25) for k in range(10)]
    np.testing.assert_allclose(jaxclip.metrics(states)["clip"].limit, expected, rtol=1e-6)


# --- the equations of what has no runnable reference ----------------------------------------------


def test_robustness_limit_norm_growth_is_its_equation():
    norms = np.abs(np.random.default_rng(5).normal(size=40)) + 0.1
    outs, _ = run(jaxclip.limit_norm_growth(1.1), norms)
    before, expected = np.inf, []
    for norm in norms:
        before = min(norm, 1.1 * (before + 1e-8))
        expected.append(before)
    np.testing.assert_allclose(outs, expected, rtol=1e-5)


def test_robustness_drop_spikes_is_its_equation():
    norms = np.random.default_rng(6).lognormal(size=60)
    outs, _ = run(jaxclip.drop_spikes(2.0, decay=0.9), norms)
    average, expected = None, []
    for norm in norms:
        limit = np.inf if average is None else 2 * average
        expected.append(norm if norm <= limit else 0)
        taken = min(norm, limit)
        average = norm if average is None else 0.9 * average + 0.1 * taken
    np.testing.assert_allclose(outs, expected, rtol=1e-5)


def test_robustness_clip_by_quantile_tracks_the_quantile():
    norms = np.random.default_rng(7).lognormal(size=2000)
    _, states = run(jaxclip.clip_by_quantile(0.8, rate=0.05, initial=1.0), norms)
    limits = np.asarray(jaxclip.metrics(states)["clip"].limit)
    expected = [1.0]
    for norm in norms[:-1]:
        expected.append(expected[-1] * np.exp(-0.05 * ((norm <= expected[-1]) - 0.8)))
    np.testing.assert_allclose(limits, expected, rtol=1e-3)
    np.testing.assert_allclose(np.mean(norms[500:] <= limits[500:]), 0.8, atol=0.02)


def test_robustness_u_clip_loses_nothing():
    rng = np.random.default_rng(8)
    gradients = jnp.asarray(rng.standard_cauchy((50, 6)), jnp.float32)
    tx = jaxclip.u_clip(0.5)
    state = tx.init(gradients[0])

    def step(state, gradient):
        out, state = tx.update(gradient, state)
        return state, out

    state, outs = jax.lax.scan(step, state, gradients)
    carry, expected = np.zeros(6), []
    for gradient in np.asarray(gradients, np.float64):
        expected.append(np.clip(gradient + carry, -0.5, 0.5))
        carry = gradient + carry - expected[-1]
    np.testing.assert_allclose(outs, expected, atol=1e-4)
    total = np.asarray(gradients, np.float64).sum(0) - np.asarray(state.carry)
    np.testing.assert_allclose(np.asarray(outs, np.float64).sum(0), total, rtol=1e-4)
