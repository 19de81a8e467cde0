"""Names for the indices in metrics, and metrics as plain numbers."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxclip

TREE = {"count": jnp.arange(2), "head": jnp.ones(2), "layers": [jnp.ones(3), None, jnp.ones(())]}


def seen(tx, gradient, **extra_args):
    [metrics] = jaxclip.metrics(tx.update(gradient, tx.init(gradient), **extra_args)[1]).values()
    return metrics


def with_spike(tree, path, size):
    """The tree, with one leaf of a size of its own."""
    names = iter(jaxclip.names(tree))
    return jax.tree.map(
        lambda x: x if next(names) != path else jnp.full_like(x, size),
        tree,
        is_leaf=lambda x: x is None,
    )


def test_names_are_paths_and_count_what_has_no_norm():
    assert jaxclip.names(TREE) == ["count", "head", "layers/0", "layers/1", "layers/2"]
    assert jaxclip.names(jnp.ones(2)) == [""]
    assert jaxclip.names({}) == []


@pytest.mark.parametrize("size", [9.0, 1e38, np.inf, np.nan])
@pytest.mark.parametrize(
    "tx",
    [
        jaxclip.clip_by_global_norm(1.0),
        jaxclip.clip_by_leaf_norm(1.0),
        jaxclip.clip_by_value(1.0),
        jaxclip.clip_by_unit_norm(1.0),
        jaxclip.clip_singular_values(1.0),
        jaxclip.skip_nonfinite(optax.identity()),
    ],
    ids=["whole", "leaf", "value", "unit", "singular", "skip"],
)
def test_names_turn_an_index_into_the_leaf_that_exploded(tx, size):
    for path in ("head", "layers/0", "layers/2"):
        metrics = seen(tx, with_spike(TREE, path, size))
        assert jaxclip.names(TREE)[metrics.largest] == path
        first = int(metrics.first_nonfinite)
        assert first == -1 if np.isfinite(size) else jaxclip.names(TREE)[first] == path


def test_names_under_masks():
    params = {"a": [jnp.ones(2), jnp.ones(2)], "b": [jnp.ones(2), 9 * jnp.ones(2)]}
    for mask in ({"a": [True, False], "b": [False, True]}, {"a": False, "b": True}):
        metrics = seen(optax.masked(jaxclip.clip_by_global_norm(1.0), mask), params)
        assert jaxclip.names(params, mask)[metrics.largest] == "b/1"
    labels = {"a": "left", "b": "right"}
    both = {k: jaxclip.clip_by_leaf_norm(1.0, name=k) for k in ("left", "right")}
    tx = optax.partition(both, labels)
    _, state = tx.update(params, tx.init(params))
    for key, path in {"left": "a/0", "right": "b/1"}.items():
        mask = jax.tree.map(lambda label, key=key: label == key, labels)
        assert jaxclip.names(params, mask)[jaxclip.metrics(state)[key].largest] == path


def test_names_of_flax_models_are_those_of_the_gradient():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert jaxclip.names(nnx.state(model, nnx.Param)) == ["bias", "kernel"]
    assert jaxclip.names(nnx.as_pure(nnx.state(model, nnx.Param))) == ["bias", "kernel"]
    boxed = nn.Dense(3, kernel_init=nn.with_partitioning(nn.zeros_init(), (None, "model")))
    params = boxed.init(jax.random.key(0), jnp.ones((1, 2)))
    assert jaxclip.names(params) == jaxclip.names(nn.unbox(params))


def test_log_is_plain_numbers_that_json_takes():
    tx = optax.chain(jaxclip.clip_by_global_norm(1.0), jaxclip.clip_by_value(0.5, name="value"))
    gradient = {"w": jnp.array([3.0, 4.0])}
    _, state = tx.update(gradient, tx.init(gradient))
    logged = jaxclip.log(state)
    assert all(type(x) is float for x in logged.values())
    assert json.loads(json.dumps(logged)) == logged
    assert (logged["clip/norm"], logged["clip/limit"], logged["clip/largest"]) == (5.0, 1.0, 0.0)
    assert "value/clip_rate" in logged
    assert jaxclip.log(jaxclip.metrics(state)) == logged
    assert jaxclip.log(jaxclip.metrics(state)["clip"])["clip/norm"] == 5.0
    assert jaxclip.log(optax.sgd(0.1).init(gradient)) == {}


def test_log_names_groups_instead_of_pooling_them():
    gradient = {"head": jnp.array([3.0, 4.0]), "body": jnp.array([1.0])}
    tx = jaxclip.clip_by_group_norm(
        {"head": "last layer", "body": "2"}, {"last layer": 0.5, "2": None}
    )
    logged = jaxclip.log(tx.update(gradient, tx.init(gradient))[1])
    assert logged["clip/norm/last layer"] == 5.0
    assert logged["clip/limit/last layer"] == 0.5
    assert logged["clip/norm/2"] == 1.0
    assert logged["clip/limit/2"] == np.inf
    assert "clip/norm" not in logged and "clip/limit" not in logged
    assert logged["clip/largest"] == 1.0  # in the order of JAX, that of the sorted labels


def test_log_names_every_block_where_detail_is_asked_for():
    gradient = {"layers": jnp.array([[3.0, 4.0], [0.0, 1.0]]), "head": jnp.array([2.0])}
    whole = jaxclip.clip_by_global_norm(1.0, detail="blocks")
    logged = jaxclip.log(whole.update(gradient, whole.init(gradient))[1])
    assert logged["clip/norm/head"] == 2.0
    np.testing.assert_allclose(logged["clip/norm/layers"], np.sqrt(26), rtol=1e-6)
    assert logged["clip/limit"] == 1.0
    stacked = jaxclip.clip(jaxclip.measures.per_slice(0), 1.0, detail="blocks")
    logged = jaxclip.log(stacked.update(gradient, stacked.init(gradient))[1])
    assert (logged["clip/norm/layers/0"], logged["clip/norm/layers/1"]) == (5.0, 1.0)


def test_log_of_many_steps_says_what_to_do():
    tx = jaxclip.clip_by_global_norm(1.0)
    many = jax.vmap(lambda g: tx.update(g, tx.init(g))[1])(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="one at a time"):
        jaxclip.log(many)
    assert jaxclip.log(jax.tree.map(lambda x: x[-1], many))["clip/limit"] == 1.0


def test_log_of_a_state_that_nnx_holds():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    tx = jaxclip.clip_by_global_norm(1.0, detail="blocks")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones((4, 2)))))(model))
    for where in (optimizer, nnx.state(optimizer)):
        assert jaxclip.log(where)["clip/norm/kernel"] > 1


def test_names_count_what_a_mask_leaves_out():
    for tx in (
        jaxclip.clip_by_global_norm(1.0, measure_mask=lambda path: path != "head"),
        jaxclip.clip_by_leaf_norm(1.0, measure_mask=lambda path: path != "head"),
        jaxclip.clip_by_value(1.0, measure_mask=lambda path: path != "head"),
    ):
        metrics = seen(tx, with_spike(with_spike(TREE, "head", 99.0), "layers/2", 9.0))
        assert jaxclip.names(TREE)[metrics.largest] == "layers/2"
