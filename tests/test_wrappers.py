"""Wrappers: a skipped step changes nothing, and nothing stops a wrapper for good."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import jaxclip
from tests.helpers import close, same_bits, tree

PARAMS = tree(seed=1)


@pytest.mark.parametrize("wrapper", [jaxclip.skip_nonfinite, jaxclip.skip_on_spike])
def test_wrappers_freeze_the_inner_state_and_count(wrapper):
    rule = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    tx = wrapper(optax.chain(jaxclip.clip_by_global_norm(1.0), rule))
    update = jax.jit(tx.update)
    _, before = update(tree(), tx.init(PARAMS), PARAMS)
    bad = tree()
    bad["conv"]["bias"] = bad["conv"]["bias"].at[0].set(jnp.nan)
    out, after = update(bad, before, PARAMS)
    assert same_bits(out, jax.tree.map(jnp.zeros_like, out))
    assert same_bits(before.inner, after.inner)
    metrics = jaxclip.metrics(after)
    name = wrapper.__name__
    assert int(metrics[name].nonfinite) == 1
    assert float(metrics[name].clipped) == 1
    assert float(metrics[name].clip_rate) == 0.5
    assert "clip" in metrics
    again, _ = update(tree(), after, PARAMS)
    expected, _ = update(tree(), before, PARAMS)
    close(again, expected)


def test_wrappers_take_the_step_after_too_many():
    tx = jaxclip.skip_nonfinite(optax.sgd(1.0), max_consecutive=2)
    state, bad = tx.init(jnp.ones(2)), jnp.array([jnp.nan, 1.0])
    outs = []
    for gradient in (bad, bad, bad, jnp.ones(2), bad):
        out, state = tx.update(gradient, state)
        outs.append(np.asarray(out))
    np.testing.assert_array_equal(outs, [[0, 0], [0, 0], [np.nan, -1], [-1, -1], [0, 0]])


@pytest.mark.parametrize("feed", ["within_limit", "raw"])
def test_wrappers_skip_spikes_of_norm_and_loss(feed):
    tx = jaxclip.skip_on_spike(optax.sgd(1.0), sigma=4.0, window=16, feed=feed)
    rng = np.random.default_rng(0)
    norms, losses = rng.uniform(0.9, 1.1, 60), rng.uniform(0.9, 1.1, 60)
    norms[20], losses[30], norms[40] = 50.0, 50.0, np.nan

    def step(state, both):
        out, state = tx.update(both[0], state, value=both[1])
        return state, out == 0

    both = jnp.asarray(np.stack([norms, losses], 1), jnp.float32)
    _, skipped = jax.lax.scan(step, tx.init(jnp.float32(0)), both)
    assert set(np.flatnonzero(skipped)) == {20, 30, 40}


@pytest.mark.parametrize("feed", ["within_limit", "raw"])
def test_wrappers_and_a_lasting_change_of_level(feed):
    tx = jaxclip.skip_on_spike(optax.sgd(1.0), window=16, feed=feed)
    norms = np.concatenate([np.linspace(0.9, 1.1, 20), np.linspace(9, 11, 40)])

    def step(state, norm):
        out, state = tx.update(norm, state)
        return state, out == 0

    _, skipped = jax.lax.scan(step, tx.init(jnp.float32(0)), jnp.asarray(norms, jnp.float32))
    assert bool(skipped[-1]) == (feed == "within_limit")  # as documented


def test_wrappers_error_feedback_around_any_clip():
    tx = jaxclip.with_error_feedback(jaxclip.clip_by_global_norm(1.0))
    gradients = [tree(jnp.float32, jnp.bfloat16, size=3.0, seed=k) for k in range(4)]
    state = tx.init(gradients[0])
    given = []
    for gradient in gradients:
        out, state = tx.update(gradient, state)
        assert float(jaxclip.global_norm(out)) <= 1 + 2**-7
        given.append(out)
    for k, carry in enumerate(jax.tree.leaves(state.carry)):
        assert carry.dtype == jnp.float32
        wanted, got = (
            sum(np.asarray(jax.tree.leaves(x)[k], np.float64) for x in trees)
            for trees in (gradients, given)
        )
        np.testing.assert_allclose(wanted - got, carry, rtol=1e-4, atol=2e-2)


def test_wrappers_leave_what_has_no_norm_alone():
    tx = jaxclip.with_error_feedback(jaxclip.clip_by_value(1.0))
    mixed = {"x": jnp.array([2.0]), "i": jnp.arange(2), "none": None}
    out, _ = tx.update(mixed, tx.init(mixed))
    np.testing.assert_array_equal(out["i"], mixed["i"])
    skip = jaxclip.skip_nonfinite(optax.identity())
    out, _ = skip.update(mixed, skip.init(mixed))
    np.testing.assert_array_equal(out["i"], mixed["i"])


def test_wrappers_refuse_what_is_wrong():
    with pytest.raises(ValueError, match="feed"):
        jaxclip.skip_on_spike(optax.sgd(1.0), feed="clipped")
    with pytest.raises(TypeError, match="window"):
        jaxclip.skip_on_spike(optax.sgd(1.0), window=2.5)
    with pytest.raises(ValueError, match="max_consecutive"):
        jaxclip.skip_nonfinite(optax.sgd(1.0), max_consecutive=-1)


WRAPPERS = {
    "skip_nonfinite": jaxclip.skip_nonfinite,
    "skip_on_spike": functools.partial(jaxclip.skip_on_spike, window=8),
    "skip_on_spike raw": functools.partial(jaxclip.skip_on_spike, window=8, feed="raw"),
    "with_error_feedback": jaxclip.with_error_feedback,
}
SPIKES = [3e19, 1e38, 3e38, np.nan, np.inf, 0.0, 1e-38]


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("before", [0, 2, 20])
def test_wrappers_recover_from_a_train_of_everything(name, before):
    tx = WRAPPERS[name](jaxclip.clip_by_global_norm(1e30))
    normal = np.linspace(0.9, 1.1, 20)
    norms = np.concatenate([normal[:before], SPIKES, normal, SPIKES[::-1], normal])
    spike = np.isin(norms, SPIKES) | np.isnan(norms)

    @jax.jit
    def run(norms):
        def step(state, norm):
            updates, state = tx.update(jnp.full(2, norm), state, value=norm)
            return state, updates[0]

        return jax.lax.scan(step, tx.init(jnp.zeros(2)), norms)

    state, outs = run(jnp.asarray(norms, jnp.float32))
    kept = [x for path, x in jax.tree.leaves_with_path(state) if "metrics" not in str(path)]
    assert all(np.all(np.isfinite(x)) for x in kept)
    assert np.all(np.isfinite(outs[~spike]))
    if "skip" in name:
        np.testing.assert_allclose(outs[-10:], norms[-10:].astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.2e-38, 1e-30, 1e-3, 1 / 3, 1.0, 1e10, 1e19, 3e38])
def test_wrappers_skip_no_step_of_a_constant_norm_or_loss(value):
    run = _constant()
    for loss in (value, -value):
        _, skipped = run(jnp.float32(value), jnp.float32(loss))
        assert not np.any(skipped)


@functools.cache
def _constant():
    tx = jaxclip.skip_on_spike(optax.identity(), window=16)

    @jax.jit
    def run(norm, loss):
        # Equal but for rounding, as the norms of equal gradients on other devices are.
        ulps = jnp.array([1, 1, 1 + 2**-23, 1, 1 - 2**-24] * 10, jnp.float32)

        def step(state, ulp):
            _, state = tx.update(norm * ulp, state, value=loss * ulp)
            return state, jaxclip.metrics(state)["skip_on_spike"].clipped

        return jax.lax.scan(step, tx.init(jnp.float32(0)), ulps)

    return run


def test_wrappers_accept_gradients_after_zeros():
    tx = jaxclip.skip_on_spike(optax.identity(), window=4)
    update, state = jax.jit(tx.update), tx.init(jnp.float32(0))
    for _ in range(8):
        _, state = update(jnp.float32(0), state)
    out, _ = update(jnp.float32(2), state)
    assert float(out) == 2


def test_wrappers_report_no_limit_before_there_is_one():
    tx = jaxclip.skip_on_spike(optax.identity())
    _, state = tx.update(jnp.float32(1), tx.init(jnp.float32(0)))
    assert float(jaxclip.metrics(state)["skip_on_spike"].limit) == np.inf


def test_wrappers_take_a_loss_of_one_number_whatever_its_shape():
    tx = jaxclip.skip_on_spike(optax.identity(), window=4)
    state = tx.init(jnp.float32(0))
    for loss in (0.5, np.float64(0.5), jnp.ones((1,)), jnp.ones((1, 1), jnp.bfloat16), 1):
        _, after = tx.update(jnp.float32(1), state, value=loss)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    with pytest.raises(ValueError, match=r"shape \(3,\).*mean over the batch"):
        tx.update(jnp.float32(1), state, value=jnp.ones(3))


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_have_states_that_can_be_donated(name):
    tx = WRAPPERS[name](optax.chain(jaxclip.clip_by_global_norm(1.0), optax.trace(0.9)))
    state = tx.init(PARAMS)
    donate = jax.jit(lambda state: state, donate_argnums=0)
    for _ in range(2):
        buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
        assert len(set(buffers)) == len(buffers)
        state = donate(state)
        _, state = tx.update(tree(), state, PARAMS, value=jnp.float32(1))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_wrappers_error_feedback_of_sums_out_of_range(dtype):
    """A sum of two finite gradients is not infinity, in the dtype of the gradient either."""
    tx = jaxclip.with_error_feedback(jaxclip.clip_by_value(1.0))
    most = jnp.finfo(dtype).max.astype(dtype)
    update, state = jax.jit(tx.update), tx.init(jnp.zeros(1, dtype))
    for gradient in (most, most, most, 0.0, np.nan, -1.0):
        out, state = update(jnp.full(1, gradient, dtype), state)
        assert np.all(np.isfinite(state.carry))
        wanted = [gradient if np.isnan(gradient) else 1.0]
        np.testing.assert_array_equal(np.asarray(out.real, np.float32), wanted)


def test_wrappers_error_feedback_of_complex_sums_out_of_range():
    tx = jaxclip.u_clip(1.0)
    update, state = jax.jit(tx.update), tx.init(jnp.zeros(1, jnp.complex64))
    for _ in range(4):
        out, state = update(jnp.full(1, 2e38 - 2e38j, jnp.complex64), state)
        np.testing.assert_allclose(out, [(1 - 1j) / np.sqrt(2)], rtol=1e-6)
        assert np.all(np.isfinite(np.abs(state.carry)))


def test_wrappers_keep_the_carry_of_what_has_no_gradient_now():
    tx = jaxclip.u_clip(1.0)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.init(params)
    _, state = tx.update({"a": jnp.full(2, 3.0), "b": jnp.full(2, 3.0)}, state)
    out, state = tx.update({"a": jnp.full(2, 3.0), "b": None}, state)
    assert out["b"] is None
    np.testing.assert_array_equal(state.carry["b"], [2, 2])
    np.testing.assert_array_equal(state.carry["a"], [4, 4])


def test_skip_nonfinite_can_stop():
    """At once outside of `jit`, under `checkify` within it, and else by a flag in the state."""
    tx = jaxclip.skip_nonfinite(optax.sgd(1.0), max_consecutive=1, on_limit="raise")
    good, bad = jnp.ones(2), jnp.array([1.0, np.nan])
    state = tx.init(good)
    _, state = tx.update(bad, state)
    with pytest.raises(Exception, match="More than 1 steps in a row"):
        tx.update(bad, state)
    checked = checkify.checkify(jax.jit(tx.update))
    assert "More than 1 steps" in checked(bad, state)[0].get()
    assert checked(good, state)[0].get() is None
    _, state = jax.jit(tx.update)(bad, state)
    assert optax.tree.get(state, "stopped")
    out, state = jax.jit(tx.update)(good, state)
    assert not np.any(out) and state.stopped
    _, after = tx.update(good, tx.init(good), loss=np.nan)
    assert after.consecutive == 1 and after.metrics["skip_nonfinite"].nonfinite == 1
    with pytest.raises(ValueError, match="Give a number of steps"):
        jaxclip.skip_nonfinite(optax.sgd(1.0), on_limit="raise")
