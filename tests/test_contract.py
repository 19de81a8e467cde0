"""The contract, for every method of the table in `tests/helpers.py`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.helpers import METHODS, Case, close, same_bits, tree, true_norms

METHOD = pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
PARAMS = tree(seed=1)


@functools.cache
def step(case: Case, **options):
    """One update of the method, compiled once for all tests that share shapes and dtypes."""
    return jax.jit(case.make(**options).update)


@METHOD
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_contract_no_block_exceeds_its_limit(case, dtype):
    params = tree(dtype, seed=1)
    tx = case.make()
    for size in (1e-3, 1.0, 100.0) + ((1e25, 1e-25) if dtype != jnp.float16 else ()):
        updates = tree(dtype, size)
        clipped, state = step(case)(updates, tx.init(params), params)
        chex.assert_trees_all_equal_shapes_and_dtypes(clipped, updates)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(clipped))
        ulps = 1 + 4 * float(jnp.finfo(dtype).eps)
        if case.limit is not None:
            limit, what = case.limit, clipped
            if case.blocks == "params":
                what = optax.apply_updates(params, clipped)
            assert np.all(true_norms(case.blocks, what) <= limit * ulps)
        elif case.blocks == "whole":
            [metrics] = jaxclip.metrics(state).values()
            assert true_norms("whole", clipped)[0] <= float(metrics.limit) * ulps


@METHOD
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contract_within_the_limit_is_the_identity_bit_for_bit(case, dtype):
    tx = case.make_idle()
    updates = tree(dtype, 1e-3)
    updates["dense"]["bias"] = jnp.array([-0.0, 1e-40, 3.0], dtype)  # a subnormal number
    clipped, _ = jax.jit(tx.update)(updates, tx.init(PARAMS), tree(dtype, seed=1))
    assert same_bits(clipped, updates)


@METHOD
def test_contract_zero_is_unchanged(case):
    tx = case.make()
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    small = jax.tree.map(lambda x: 0.1 * x, PARAMS) if case.blocks == "params" else PARAMS
    clipped, state = step(case)(zeros, tx.init(small), small)
    if case.blocks != "params":
        assert same_bits(clipped, zeros)
    assert not any(bool(jnp.any(jnp.isnan(x))) for x in jax.tree.leaves((clipped, state)))


@METHOD
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_contract_nonfinite_cannot_hide_and_teaches_nothing(case, bad, nonfinite):
    tx = case.make(nonfinite=nonfinite)
    updates = tree()
    _, before = step(case, nonfinite=nonfinite)(updates, tx.init(PARAMS), PARAMS)
    updates["dense"]["bias"] = updates["dense"]["bias"].at[1].set(bad)
    clipped, after = step(case, nonfinite=nonfinite)(updates, before, PARAMS)
    expected = 0.0 if nonfinite == "zero" else np.nan
    where = clipped["dense"]["bias"]
    if case.blocks == "params":
        where = (PARAMS["dense"]["bias"] + where)[1:2]
    elif case.blocks == "entry":
        where = where[1:2]
    np.testing.assert_array_equal(where, np.full(where.shape, expected, np.float32))
    if case.blocks == "whole":
        assert all(np.array_equal(x, np.full(x.shape, expected), equal_nan=True)
                   for x in jax.tree.leaves(clipped))
    if nonfinite == "zero":
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(clipped))
    if case.blocks == "whole":
        for x, y in zip(_thresholds(before), _thresholds(after), strict=True):
            np.testing.assert_array_equal(x, y)
    counts = [int(m.nonfinite) for m in jaxclip.metrics(after).values()]
    assert max(counts) == 1 and max(
        int(m.nonfinite) for m in jaxclip.metrics(before).values()
    ) == 0


def _thresholds(state) -> list:
    """All of a state but its step counters and metrics."""
    is_clip = lambda x: hasattr(x, "thresholds")  # noqa: E731
    parts = jax.tree.leaves(state, is_leaf=is_clip)
    return jax.tree.leaves([part.thresholds for part in parts if is_clip(part)])
