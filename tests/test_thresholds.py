"""Thresholds: wrong arguments, those made of others, and states that can be kept."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxclip
from jaxclip import measures, thresholds
from jaxclip.thresholds.averages import second_moment
from tests.helpers import same_bits, tree

ALL = {
    "constant": thresholds.constant(1.0),
    "scheduled": thresholds.scheduled(optax.constant_schedule(1.0)),
    "ema": thresholds.ema(1.1, decay=0.9),
    "zscore": thresholds.zscore(warmup=2),
    "previous": thresholds.previous(1.1),
    "second_moment": thresholds.averages.second_moment(2.0, warmup=1),
    "history": thresholds.history(window=4),
    "quantile": thresholds.quantile(0.5, window=4),
    "geometric_quantile": thresholds.geometric_quantile(0.5),
    "lowest": thresholds.lowest(thresholds.ema(1.1, decay=0.9), 1.0),
    "warmup_then": thresholds.warmup_then(2, 1.0, thresholds.history(window=4)),
}


def test_thresholds_states_survive_orbax_and_flax_and_go_on_bit_for_bit(tmp_path):
    txs = {name: jaxclip.clip(measures.per_leaf(), one) for name, one in ALL.items()}
    gradients = [tree(seed=seed) for seed in range(6)]

    @jax.jit
    def update(gradient, states):
        both = {name: tx.update(gradient, states[name]) for name, tx in txs.items()}
        return {k: out for k, (out, _) in both.items()}, {k: s for k, (_, s) in both.items()}

    states = {name: tx.init(gradients[0]) for name, tx in txs.items()}
    for gradient in gradients[:3]:
        _, states = update(gradient, states)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", states)
        checkpointer.wait_until_finished()
        by_orbax = checkpointer.restore(tmp_path / "state", states)
    by_flax = flax.serialization.from_bytes(states, flax.serialization.to_bytes(states))
    for gradient in gradients[3:]:
        out, states = update(gradient, states)
        for other in (by_orbax, by_flax):
            again, _ = update(gradient, other)
            assert same_bits(again, out)
        _, by_orbax = update(gradient, by_orbax)
        _, by_flax = update(gradient, by_flax)
    assert same_bits(by_orbax, states)
    assert same_bits(by_flax, states)


def test_thresholds_vmap_over_their_numbers():
    norms = jnp.asarray(np.random.default_rng(0).lognormal(size=12), jnp.float32)

    def total(z, decay, ratio, quantile):
        limits = thresholds.lowest(
            thresholds.zscore(z, decay=decay, warmup=2),
            thresholds.ema(ratio, decay=decay),
            thresholds.quantile(quantile, window=4),
            thresholds.geometric_quantile(quantile, initial=ratio),
            thresholds.history(z, window=4),
        )
        tx = jaxclip.clip(measures.whole(), limits)
        return jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(norms[0]), norms)[1]

    numbers = [jnp.array(pair) for pair in ([1.0, 3.0], [0.9, 0.99], [1.1, 4.0], [0.3, 0.9])]
    batched = jax.jit(jax.vmap(total))(*numbers)
    for k in range(2):
        alone = total(*[float(pair[k]) for pair in numbers])
        np.testing.assert_allclose(batched[k], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: thresholds.ema(-1.0, decay=0.9), ValueError, "`ratio` is -1.0"),
        (lambda: thresholds.ema(0.0, decay=0.9), ValueError, "`ratio` is 0.*zeros of all"),
        (lambda: jaxclip.clip_by_norm_ratio(0), ValueError, "`ratio` is 0.*zeros of all"),
        (lambda: jaxclip.spam_clip(0.0), ValueError, "`ratio` is 0.*zeros of all"),
        (lambda: jaxclip.drop_spikes(0), ValueError, "`factor` is 0.*zeros of all"),
        (lambda: thresholds.ema(1.0, decay=1.5), ValueError, "`decay` is 1.5.*0 to 1"),
        (lambda: thresholds.ema(1.0, decay=0.9, feed="some"), ValueError, "'clipped', 'raw'"),
        (lambda: thresholds.zscore(rule="max"), ValueError, "'adaptive', 'mean', 'cap'"),
        (lambda: thresholds.quantile(2.0), ValueError, "`quantile` is 2.0"),
        (lambda: thresholds.quantile(0.5, window=0), ValueError, "`window` is 0"),
        (lambda: thresholds.history(window=3.0), TypeError, "`window` is 3.0"),
        (lambda: thresholds.lowest(), ValueError, "no limits"),
        (lambda: thresholds.relative("1"), TypeError, "`ratio` is '1'"),
        (lambda: jaxclip.autoclip(101.0), ValueError, "`percentile` is 101.0.*0 to 100"),
        (lambda: jaxclip.adagc(feed="within_limit"), ValueError, "'clipped', 'raw'"),
        (lambda: jaxclip.clip_singular_values(1.0, method="qr"), ValueError, "'svd'"),
        (
            lambda: jaxclip.clip_singular_values(1.0, method="newton_schulz", shrink=jnp.add),
            ValueError,
            "matrix products",
        ),
        (
            lambda: jaxclip.clip_singular_values(ALL["ema"], method="newton_schulz"),
            ValueError,
            "knows",
        ),
    ],
)
def test_thresholds_refuse_what_is_wrong(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_thresholds_of_a_warm_up():
    tx = jaxclip.clip(measures.whole(), thresholds.warmup_then(2, 0.5, 1.0))
    state, seen = tx.init(jnp.ones(1)), []
    for _ in range(4):
        _, state = tx.update(jnp.full(1, 9.0), state)
        seen.append(float(jaxclip.metrics(state)["clip"].limit))
    assert seen == [0.5, 0.5, 1.0, 1.0]


def test_thresholds_autoclip_keeps_its_window_in_order():
    tracker = thresholds.quantile(0.5, window=8)
    state = tracker.init(jnp.float32(0))
    norms = np.random.default_rng(1).integers(0, 4, 40).astype(np.float32)  # with ties
    update = jax.jit(tracker.update)
    for k, norm in enumerate(norms):
        _, state = update(norm, state, None)
        held = np.sort(norms[max(0, k - 7) : k + 1])
        np.testing.assert_array_equal(state.ordered[: len(held)], held)


def test_thresholds_begin_with_the_first_positive_norm():
    """Zeros at first, as a LoRA factor has them, set no limit; nor do a thousand of them later."""
    memories = {
        "zclip(warmup=0)": thresholds.zscore(warmup=0),
        "zclip(warmup=1)": thresholds.zscore(warmup=1),
        "spam_clip(warmup=0)": thresholds.averages.second_moment(5000.0, warmup=0),
        "ema": thresholds.ema(1.5, decay=0.9),
        "smallest": thresholds.ema(1.5, decay=0.9, warmup=3, start="smallest"),
        "previous": thresholds.previous(1.01),
    }
    for name, memory in memories.items():
        tx = jaxclip.clip(measures.per_leaf(), memory)

        @jax.jit
        def run(norms, tx=tx):
            def step(state, norm):
                out, state = tx.update(norm, state)
                return state, out

            return jax.lax.scan(step, tx.init(norms[0]), norms)[1]

        outs = run(jnp.array([0.0, 0.0, 2.0, 2.0, 1.0], jnp.float32))
        np.testing.assert_allclose(outs, [0, 0, 2, 2, 1], rtol=1e-6, err_msg=name)
        if name in ("ema", "previous"):
            outs = run(jnp.array([0.0, 1e-6, 1.0, 1.0, 1.0], jnp.float32))
            assert outs[2] < 2e-6, name
    tracker = jaxclip.clip_by_quantile()
    state, zero = tracker.init(jnp.zeros(())), jnp.zeros(())
    state = jax.lax.fori_loop(0, 1000, lambda _, s: tracker.update(zero, s)[1], state)
    state = jax.lax.fori_loop(0, 1000, lambda _, s: tracker.update(zero + 1, s)[1], state)
    assert float(jaxclip.metrics(state)["clip"].limit) > 0.5


@pytest.mark.parametrize("number", [0.0, 0.1])
def test_thresholds_that_shrink_to_zero_do_not_begin_again(number):
    """A limit below the norms that it follows falls for ever, and what is left is no start."""
    number = jnp.float32(number)  # which may come from a schedule, and is not refused
    norms = jnp.concatenate([jnp.array([0.9, 1.1, 1.0]), jnp.full(600, 1.2)])
    for threshold in (
        thresholds.ema(number, decay=0.8),
        second_moment(number, decay=0.8, warmup=0),
        thresholds.zscore(0.1, decay=0.8, warmup=3, factor=number),
    ):
        tx = jaxclip.clip(measures.whole(), threshold)
        _, outs = jax.lax.scan(lambda s, n, tx=tx: tx.update(n, s)[::-1], tx.init(norms[0]), norms)
        assert outs[0] > 0.8
        assert np.max(outs[-500:]) < 0.9
