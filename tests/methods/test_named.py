"""Named methods: their signatures, and what Optax makes of them."""

import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip


def test_named_lists_every_method_that_is_public():
    assert all(getattr(jaxclip, name) is method for name, method in jaxclip.named().items())


def test_named_signatures_spell_the_options_out():
    parameters = inspect.signature(jaxclip.clip_by_leaf_norm).parameters
    assert list(parameters) == [
        "limit",
        "ord",
        "axes",
        "nonfinite",
        "axis_name",
        "measure_mask",
        "apply_mask",
        "name",
        "detail",
        "shrink",
    ]
    assert str(parameters["ord"]).endswith("= 2")
    assert "= hard" in str(parameters["shrink"])
    with pytest.raises(TypeError, match="no argument `limits`"):
        jaxclip.clip_by_leaf_norm(1.0, limits=2)


def test_named_methods_take_injected_hyperparameters():
    tx = optax.inject_hyperparams(jaxclip.clip_by_global_norm)(optax.linear_schedule(1.0, 0.0, 10))
    gradient = jnp.array([3.0, 4.0])
    state = tx.init(gradient)
    assert set(state.hyperparams) == {"limit", "eps"}
    out, state = tx.update(gradient, state)
    np.testing.assert_allclose(out, gradient / 5, rtol=1e-6)
    out, state = tx.update(gradient, state)
    np.testing.assert_allclose(out, 0.9 * gradient / 5, rtol=1e-6)
    static = optax.inject_hyperparams(jaxclip.clip_by_global_norm, static_args="ord")(1.0, ord=1)
    np.testing.assert_allclose(static.update(gradient, static.init(gradient))[0], gradient / 7)
    with pytest.raises(TypeError, match="static_args"):
        optax.inject_hyperparams(jaxclip.clip_by_global_norm)(1.0, ord=1).init(gradient)
    for options, dtype in (({}, jnp.bfloat16), ({"hyperparam_dtype": jnp.float32}, jnp.float32)):
        half = optax.inject_hyperparams(jaxclip.clip_by_global_norm, **options)(1.0)
        assert half.init(gradient.astype(jnp.bfloat16)).hyperparams["limit"].dtype == dtype
