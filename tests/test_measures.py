"""Measures: which blocks, how large, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import leaves, measures, norms
from tests.helpers import close, same_bits, tree

ALL = {
    "whole": measures.whole(),
    "per_group": measures.per_group(lambda updates: jax.tree.map(jnp.ndim, updates)),
    "per_slice": measures.per_slice((0, -1)),
    "per_leaf": measures.per_leaf(),
    "per_unit": measures.per_unit(),
    "per_entry": measures.per_entry(),
}


@pytest.mark.parametrize("measure", ALL.values(), ids=ALL.keys())
def test_measures_know_the_way_back(measure):
    """Factors of 1 change nothing, of 0 leave zeros, and of 2 double every norm."""
    updates = tree()
    values, rescale = measure(updates)
    ones = jax.tree.map(jnp.ones_like, values)
    assert same_bits(rescale(ones), updates)
    zero = rescale(jax.tree.map(jnp.zeros_like, values))
    assert all(not np.any(x) for x in jax.tree.leaves(zero))
    doubled, _ = measure(rescale(jax.tree.map(lambda one: 2 * one, ones)))
    close(doubled, jax.tree.map(lambda norm: 2 * norm, values))


def test_measures_keep_the_axes_they_name():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    for axes in (0, -1, (0, 2), (0, 1, 2), ()):
        kept = {a % 3 for a in ((axes,) if isinstance(axes, int) else axes)}
        [value] = [measures.per_slice(axes)(x)[0]]
        reduced = tuple(a for a in range(3) if a not in kept)
        np.testing.assert_allclose(value, np.sqrt(np.sum(np.square(x), reduced)), rtol=1e-6)
    by_path = measures.per_slice(lambda path, leaf: 0 if "first" in str(path) else ())
    values, _ = by_path({"first": x, "second": x})
    assert values["first"].shape == (2,)
    assert values["second"].shape == ()
    assert measures.per_slice(-1)(jnp.array(3.0))[0].shape == ()


def test_measures_of_units_of_every_rank():
    values, _ = measures.per_unit()(
        [jnp.ones(()), jnp.ones(5), jnp.ones((2, 3)), jnp.ones((2, 2, 3))]
    )
    assert [v.shape for v in values] == [(), (), (3,), (3,)]
    values, _ = measures.per_unit((0, -1))(jnp.ones((4, 2, 3)))
    np.testing.assert_allclose(values, np.full((4, 3), np.sqrt(2)), rtol=1e-6)


def test_measures_take_any_norm_and_group():
    updates = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    assert float(measures.whole(norms.l1)(updates)[0]) == 6
    assert float(measures.whole(norms.linf)(updates)[0]) == 3
    groups, rescale = measures.per_group({"a": "x", "b": "y"}, norms.linf)(updates)
    assert {k: float(v) for k, v in groups.items()} == {"x": 2, "y": 3}
    out = rescale({"x": jnp.array(0.5), "y": jnp.array(0.0)})
    np.testing.assert_array_equal(out["a"], [0.5, -1])
    np.testing.assert_array_equal(out["b"], [0])


def test_measures_scale_in_float32_and_by_selection():
    half = jnp.array([1.0, 3.0], jnp.bfloat16)
    assert leaves.scale(half, jnp.array(1 / 3)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        leaves.scale(jnp.array([jnp.nan, jnp.inf]), jnp.array(0.0)), [0, 0]
    )
    assert leaves.scale("text", jnp.array(0.0)) == "text"
    assert np.isnan(leaves.scale(jnp.ones(2), jnp.array(jnp.nan))).all()


def test_measures_take_python_numbers():
    value, rescale = measures.whole()({"a": 3.0, "b": 4.0, "c": 1})
    assert float(value) == 5
    assert rescale(jnp.array(0.5))["c"] == 1
