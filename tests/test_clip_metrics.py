"""Metrics: found wherever an optimizer's state is kept, and right over many steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.helpers import METHODS, same_bits
from tests.hlo import collectives


def _two_clips():
    return optax.chain(
        jaxclip.clip_by_value(10.0, name="by value"),
        jaxclip.clip_by_global_norm(1.0),
        optax.sgd(0.1),
        jaxclip.clip_by_global_norm(0.05),
    )


def test_metrics_of_two_clips_in_one_chain():
    gradient = jnp.array([3.0, 4.0])
    _, state = _two_clips().update(gradient, _two_clips().init(gradient))
    found = jaxclip.metrics(state)
    assert list(found) == ["by value", "clip", "clip_2"]
    assert float(found["clip"].norm) == 5.0
    np.testing.assert_allclose(found["clip_2"].norm, 0.1, rtol=1e-6)
    np.testing.assert_allclose(found["clip_2"].clipped_norm, 0.05, rtol=1e-6)


def test_metrics_names_are_counted_exactly():
    """A name that begins with another is not the same, and one that is taken is left out."""
    clip = jaxclip.clip_by_global_norm
    names = ["clip_head", "clip", "clip_2", "clip", "clip_head"]
    tx = optax.chain(*[clip(1.0 + k, name=name) for k, name in enumerate(names)])
    found = jaxclip.metrics(tx.update(jnp.full(1, 9.0), tx.init(jnp.ones(1)))[1])
    assert list(found) == ["clip_head", "clip", "clip_2", "clip_3", "clip_head_2"]
    assert [float(m.limit) for m in found.values()] == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("name", sorted(jaxclip.named()))
def test_metrics_of_a_method_are_one_entry_under_its_own_name(name):
    [case] = [case for case in METHODS if case.name == name]
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    assert list(jaxclip.metrics(jax.eval_shape(case.make().init, params))) == ["clip"]
    if case.options:
        own = jax.eval_shape(case.make(name="mine").init, params)
        assert list(jaxclip.metrics(own)) == ["mine"]


def test_metrics_before_the_first_step_and_without_a_clip():
    found = jaxclip.metrics(_two_clips().init(jnp.ones(2)))
    assert float(found["clip"].limit) == np.inf
    assert float(found["clip"].norm) == 0
    assert jaxclip.metrics(optax.adam(0.1).init(jnp.ones(2))) == {}


def test_metrics_in_nnx():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, _two_clips(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.full((4, 2), 10.0))))(model))

    step(model, optimizer)
    for where in (optimizer, optimizer.opt_state, nnx.state(optimizer)):
        found = jaxclip.metrics(where)
        assert list(found) == ["by value", "clip", "clip_2"]
        assert float(found["clip"].norm) > 1 and found["clip"].norm.shape == ()


def test_metrics_in_a_linen_train_state():
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), jnp.ones((4, 2)))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=_two_clips())
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, jnp.full((4, 2), 10.0))))(params)
    state = jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, gradient)
    assert float(jaxclip.metrics(state)["clip"].norm) > 1


def test_metrics_inside_scan_and_over_many_steps():
    tx = jaxclip.clip_by_global_norm(1.0)
    sizes = jnp.array([0.5, 2.0, np.nan, 3.0, 0.1, np.inf, 0.2, 4.0])

    def step(state, size):
        _, state = tx.update(jnp.array([size]), state)
        return state, jaxclip.metrics(state)["clip"]

    final, seen = jax.lax.scan(step, tx.init(jnp.ones(1)), sizes)
    np.testing.assert_array_equal(seen.norm, sizes)
    np.testing.assert_array_equal(seen.clipped, [0, 1, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(seen.nonfinite, [0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_allclose(
        seen.clip_rate, np.cumsum(np.asarray(seen.clipped)) / np.arange(1, 9), rtol=1e-6
    )
    assert seen.norm.shape == (8,)
    assert float(jaxclip.metrics(final)["clip"].clip_rate) == 3 / 8


def test_metrics_are_one_update_without_a_host():
    tx = jaxclip.clip_by_global_norm(1.0)
    gradient = jnp.ones(4)
    text = jax.jit(tx.update).lower(gradient, tx.init(gradient)).as_text()
    assert "callback" not in text


def test_metrics_cost_no_second_pass():
    """The gradient is read twice and written once, whether the metrics are kept or thrown away."""
    tx = jaxclip.clip_by_global_norm(1.0)
    gradient = jnp.ones(2**16)
    state = tx.init(gradient)

    def bytes_of(f):
        return jax.jit(f).lower(gradient).compile().cost_analysis()["bytes accessed"]

    kept = bytes_of(lambda g: tx.update(g, state))
    thrown_away = bytes_of(lambda g: tx.update(g, state)[0])
    assert kept <= thrown_away + 4096


def _run(tx, gradients):
    return jax.lax.scan(
        lambda state, g: (lambda out, state: (state, jaxclip.metrics(state)["clip"]))(
            *tx.update(g, state)
        ),
        tx.init(jax.tree.map(lambda x: x[0], gradients)),
        gradients,
    )[1]


def test_metrics_remember_where_a_train_of_nonfinite_steps_began():
    """Once all parameters are nan, all gradients are: it is the first that tells."""
    nan = np.nan
    gradients = {"a": jnp.array([1, 1, nan, 1, nan, nan]), "b": jnp.array([1, nan, nan, 1, 1, nan])}
    seen = _run(jaxclip.clip_by_global_norm(1.0), gradients)
    np.testing.assert_array_equal(seen.first_nonfinite, [-1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(seen.largest, [0, 1, 0, 0, 0, 0])


def test_metrics_of_sizes_leave_out_what_is_not_finite():
    sizes = [2.0, np.nan, 3e38, 1.0, np.inf, 0.0, 1e-40]
    seen = _run(jaxclip.clip_by_global_norm(1.0), jnp.array(sizes)[:, None])
    np.testing.assert_allclose(seen.max_norm, [2, 2, *[3e38] * 5], rtol=1e-6)
    finite = np.array([x for x in sizes if np.isfinite(x)])
    means = np.cumsum(finite) / np.arange(1, len(finite) + 1)
    np.testing.assert_allclose(np.delete(seen.mean_norm, [1, 4]), means, rtol=1e-6)
    assert seen.mean_norm[1] == 2


def test_metrics_average_moves_after_a_hundred_steps():
    sizes = jnp.concatenate([jnp.ones(150), jnp.full(300, 5.0)])
    seen = _run(jaxclip.clip_by_global_norm(1.0), sizes[:, None])
    assert seen.mean_norm[149] == 1
    np.testing.assert_allclose(seen.mean_norm[249], 5 - 4 * 0.99**100, rtol=1e-4)


def test_metrics_of_an_update_without_a_gradient_of_some_leaf():
    params = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    tx = jaxclip.clip_by_leaf_norm(1.0, detail="blocks")
    state = tx.init(params)
    _, after = tx.update({"a": None, "b": params["b"]}, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    metrics = jaxclip.metrics(after)["clip"]
    assert (metrics.norms, metrics.largest) == ({"a": 0.0, "b": 4.0}, 1)
    assert metrics.limits == {"a": np.inf, "b": 1.0}


@pytest.mark.parametrize("detail", ["summary", "blocks"])
def test_metrics_by_leaf_cost_no_further_collective(detail):
    """One all-reduce, of a number a sharded leaf, as of the norm alone; and no second pass."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    layout = NamedSharding(mesh, P("data"))
    gradient = {
        key: jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=layout) for key in "abcdef"
    }
    tx = jaxclip.clip_by_global_norm(1.0, detail=detail)
    state = jax.eval_shape(tx.init, gradient)
    compiled = jax.jit(tx.update).lower(gradient, state).compile()
    [reduce] = collectives(compiled)
    assert reduce.kind == "all-reduce" and list(reduce.sizes) == [1] * 6


def test_metrics_take_the_norm_in_hand_in_place_of_a_pass():
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    for method in (jaxclip.clip_by_global_norm, jaxclip.normalize_by_global_norm):
        tx = method(1.0)
        state = tx.init(gradient)
        computed, expected = tx.update(gradient, state)
        out, after = tx.update(gradient, state, grad_norm=jaxclip.global_norm(gradient))
        assert same_bits(out, computed)
        assert after.metrics["clip"].largest == -1  # which costs the pass
        known = after.metrics["clip"]._replace(largest=expected.metrics["clip"].largest)
        assert same_bits(known, expected.metrics["clip"])
    for given, measures in (({}, True), ({"grad_norm": jnp.float32(5)}, False)):
        text = str(jax.make_jaxpr(lambda g, given=given: tx.update(g, state, **given))(gradient))
        assert ("reduce_sum[axes=(0,)" in text) == measures
    out, after = tx.update(gradient, state, grad_norm=np.nan)
    assert np.isnan(out["a"]).all() and after.metrics["clip"].nonfinite == 1
    with pytest.raises(ValueError, match="`grad_norm` is an array of shape"):
        tx.update(gradient, state, grad_norm=jnp.ones(2))
    detailed = jaxclip.clip_by_global_norm(1.0, detail="blocks")
    _, after = detailed.update(gradient, detailed.init(gradient), grad_norm=jnp.float32(10))
    metrics = after.metrics["clip"]
    assert (metrics.norm, metrics.largest) == (10, 1) and metrics.norms == {"a": 3.0, "b": 4.0}
