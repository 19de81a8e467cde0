"""Metrics: found wherever an optimizer's state is kept, and right over many steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxclip
from tests.helpers import METHODS


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
