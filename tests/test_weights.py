"""Projections of the parameters."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.helpers import close, same_bits


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


def bounds(params):
    """What far updates leave of parameters: how far from 0 each array may be, None without end."""
    tx = jaxclip.clip_weights_by_fan_in(1.0)
    far = jax.tree.map(lambda x: jnp.full_like(x, 1e3), params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    out, _ = jax.jit(tx.update)(far, tx.init(params), zeros)
    return jax.tree.map(lambda x: None if np.max(x) == 1e3 else 1 / float(np.max(x)) ** 2, out)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("library", ["nnx", "linen"])
def test_weights_by_fan_in_of_attention(library, use_bias):
    """A projection [d, heads, size] has d inputs, the output [heads, size, d] the other way."""
    shape = (2, 5, 8)
    if library == "nnx":
        module = nnx.MultiHeadAttention(2, 8, 6, use_bias=use_bias, rngs=nnx.Rngs(0))
        params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    else:
        module = linen.MultiHeadDotProductAttention(2, qkv_features=6, use_bias=use_bias)
        params = module.init(jax.random.key(0), jnp.ones(shape))["params"]
    found = bounds(params)
    for projection in ("query", "key", "value"):
        assert params[projection]["kernel"].shape == (8, 2, 3)
        for leaf in found[projection].values():
            np.testing.assert_allclose(leaf, 8, rtol=1e-5)
    for leaf in found["out"].values():
        np.testing.assert_allclose(leaf, 6, rtol=1e-5)


def test_weights_by_fan_in_of_attention_in_haiku():
    def network(x):
        init = hk.initializers.RandomNormal()
        return hk.MultiHeadAttention(2, 3, w_init=init, model_size=7)(x, x, x)

    params = hk.transform(network).init(jax.random.key(0), jnp.ones((2, 5, 8)))
    found = bounds(params)
    for name, inputs in {"query": 8, "key": 8, "value": 8, "linear": 6}.items():
        for leaf in found[f"multi_head_attention/{name}"].values():
            np.testing.assert_allclose(leaf, inputs, rtol=1e-5)


def test_weights_by_fan_in_of_embeddings_and_of_biases_of_other_shapes():
    params = {
        "embed": {"embedding": jnp.zeros((50, 4))},
        "haiku": {"embeddings": jnp.zeros((50, 4))},
        # One that broadcasts is none of the outputs; a square kernel is no bias.
        "odd": {"kernel": jnp.zeros((3, 5, 2)), "bias": jnp.zeros((1, 2))},
        "two": {"w1": jnp.zeros((4, 2)), "w2": jnp.zeros((3, 4, 2))},
        "general": {"kernel": jnp.zeros((3, 5, 2, 7)), "bias": jnp.zeros((5, 2, 7))},
    }
    found = bounds(params)
    np.testing.assert_allclose(found["embed"]["embedding"], 4, rtol=1e-5)
    np.testing.assert_allclose(found["haiku"]["embeddings"], 4, rtol=1e-5)
    np.testing.assert_allclose(found["odd"]["kernel"], 15, rtol=1e-5)
    assert found["odd"]["bias"] is None
    np.testing.assert_allclose([found["two"]["w1"], found["two"]["w2"]], [4, 12], rtol=1e-5)
    np.testing.assert_allclose(list(found["general"].values()), [3, 3], rtol=1e-5)


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


def test_weights_fan_in_is_that_of_all_devices():
    kernel, spec = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32), P("data")
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def clip(kernel, **options):
        tx = jaxclip.clip_weights_by_fan_in(0.5, **options)
        return tx.update(kernel, tx.init(kernel), kernel)

    run = jax.shard_map(
        functools.partial(clip, axis_name=spec), mesh=mesh, in_specs=spec, out_specs=(spec, P())
    )
    close(jax.jit(run)(kernel), clip(kernel))
    run = jax.shard_map(
        functools.partial(clip, axis_name="data"), mesh=mesh, in_specs=spec, out_specs=(spec, P())
    )
    with pytest.raises(ValueError, match=r"its shape over all devices is wanted.*`PartitionSpec`"):
        jax.eval_shape(run, kernel)


def test_weights_fan_in_of_a_bias_whose_kernel_is_left_alone():
    tree = {"kernel": 3 * jnp.ones((4, 8)), "bias": 9 * jnp.ones(8)}
    tx = jaxclip.clip_weights_by_fan_in(1.0, measure_mask={"kernel": False, "bias": True})
    out, _ = tx.update(tree, tx.init(tree), tree)
    assert same_bits(out["kernel"], tree["kernel"])
    np.testing.assert_allclose(tree["bias"] + out["bias"], np.full(8, 0.5))
