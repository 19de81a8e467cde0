"""Wrappers: a step that is left out has not been."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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


@pytest.mark.parametrize("feed", ["normal", "raw"])
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


@pytest.mark.parametrize("feed", ["normal", "raw"])
def test_wrappers_and_a_lasting_change_of_level(feed):
    tx = jaxclip.skip_on_spike(optax.sgd(1.0), window=16, feed=feed)
    norms = np.concatenate([np.linspace(0.9, 1.1, 20), np.linspace(9, 11, 40)])

    def step(state, norm):
        out, state = tx.update(norm, state)
        return state, out == 0

    _, skipped = jax.lax.scan(step, tx.init(jnp.float32(0)), jnp.asarray(norms, jnp.float32))
    assert bool(skipped[-1]) == (feed == "normal")  # as documented


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
