"""Against Optax wherever Optax is right, over random trees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxclip
from tests.helpers import close, same_bits, tree

PAIRS = {
    "global_norm": (jaxclip.clip_by_global_norm, optax.clip_by_global_norm),
    "value": (jaxclip.clip_by_value, optax.clip),
    "block_rms": (jaxclip.clip_by_block_rms, optax.clip_by_block_rms),
    "agc": (jaxclip.adaptive_grad_clip, optax.adaptive_grad_clip),
    "normalize": (
        jaxclip.normalize_by_global_norm,
        lambda norm: optax.normalize_by_update_norm(norm, eps=0),
    ),
}


@functools.cache
def _both(pair: str):
    ours, theirs = PAIRS[pair]

    @jax.jit
    def run(gradient, params, limit):
        return [
            tx.update(gradient, tx.init(params), params)[0] for tx in (ours(limit), theirs(limit))
        ]

    return run


@pytest.mark.parametrize("pair", PAIRS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(1e-3, 1e3),
    limit=st.floats(1e-3, 1e2),
    zeros=st.booleans(),
)
def test_fixed_methods_are_those_of_optax(pair, seed, size, limit, zeros):
    gradient, params = _flat(seed, size), _flat(seed + 1, 1.0)
    if zeros:
        gradient["b"] = jnp.zeros_like(gradient["b"])
    ours, theirs = _both(pair)(gradient, params, jnp.float32(limit))
    close(ours, theirs, rtol=3e-6, atol=1e-12)


def _flat(seed, size):
    rng = np.random.default_rng(seed)
    shapes = {"b": (3,), "w": (4, 3), "scalar": (), "conv": (2, 2, 3, 4)}
    return {k: jnp.asarray(size * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def test_fixed_value_clips_complex_entries_by_modulus():
    z = jnp.array([3 + 4j, 0.3 + 0.4j], jnp.complex64)
    tx = jaxclip.clip_by_value(1.0)
    out, _ = tx.update(z, tx.init(z))
    np.testing.assert_allclose(out, [0.6 + 0.8j, 0.3 + 0.4j], rtol=1e-6)


def test_fixed_value_of_its_own_way_is_that_of_the_general_one():
    gradient = tree(jnp.float32, jnp.bfloat16)
    gradient["conv"]["bias"] = gradient["conv"]["bias"].at[0].set(jnp.nan)
    limits = {"conv": {"bias": 0.75, "kernel": None}, "temperature": 0.25}
    for nonfinite in ("propagate", "zero"):
        general = jaxclip.clip(jaxclip.measures.per_entry(), limits, nonfinite=nonfinite)
        own = jaxclip.clip_by_value(limits, nonfinite=nonfinite)
        out, state = general.update(gradient, general.init(gradient))
        expected, expected_state = own.update(gradient, own.init(gradient))
        close(out, expected)
        close(state, expected_state)
    learning = jaxclip.thresholds.relative(0.1)
    tx = jaxclip.clip_by_value(learning)
    out, _ = tx.update(tree(), tx.init(tree()), tree(seed=1))
    close(
        out,
        jax.tree.map(lambda g, p: jnp.clip(g, -0.1 * abs(p), 0.1 * abs(p)), tree(), tree(seed=1)),
    )


def test_fixed_value_moves_fewer_bytes_than_the_general_way():
    gradient = jnp.ones(2**16)
    general = jaxclip.clip(jaxclip.measures.per_entry(), 0.5)
    compiled = [
        jax.jit(tx.update).lower(gradient, tx.init(gradient)).compile()
        for tx in (jaxclip.clip_by_value(0.5), general)
    ]
    own, other = [c.cost_analysis()["bytes accessed"] for c in compiled]
    assert own < 0.6 * other


def test_fixed_unit_axes_are_obeyed():
    kernel = jnp.ones((2, 3, 4))
    for axes, reduced in ((-1, 6), (None, 6), (0, 12), ((0, -1), 3)):
        tx = jaxclip.clip_by_unit_norm(1.0, axes=axes)
        out, _ = tx.update(kernel, tx.init(kernel))
        np.testing.assert_allclose(out, np.full((2, 3, 4), reduced**-0.5), rtol=1e-6)
        tx = jaxclip.adaptive_grad_clip(0.1, axes=axes)
        out, _ = tx.update(kernel, tx.init(kernel), 2 * kernel)
        np.testing.assert_allclose(out, np.full((2, 3, 4), 0.2), rtol=1e-6)


def test_fixed_eps_is_that_of_torch():
    gradient = jnp.array([3.0, 4.0])
    tx = jaxclip.clip_by_global_norm(1.0, eps=1.0)
    np.testing.assert_allclose(tx.update(gradient, tx.init(gradient))[0], gradient / 6, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`eps` is inf.* of 0 to 3.4"):
        jaxclip.clip_by_global_norm(1.0, eps=np.inf)


def test_fixed_group_limits():
    gradient = tree(size=5.0)
    tx = jaxclip.clip_by_group_norm(
        lambda p: jax.tree.map(lambda x: "scalar" if jnp.ndim(x) == 0 else "array", p),
        {"scalar": None, "array": 0.5},
    )
    out, _ = tx.update(gradient, tx.init(gradient))
    assert same_bits(out["temperature"], gradient["temperature"])
    np.testing.assert_allclose(jaxclip.global_norm(out["conv"]), 0.5, rtol=1e-6)
