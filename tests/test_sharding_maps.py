"""Every method and wrapper within `shard_map`, tracked or not, and within `pmap`.

Told by `axis_name` which leaves are spread, two steps give the updates and states of one device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.test_sharding import (
    EVERY,
    LAYOUTS,
    PARAMS,
    SPECTRAL,
    STEPS,
    in_turn,
    mesh,
    same,
    state_layout,
)

DAILY = ("clip_by_global_norm", "clip_by_unit_norm", "zclip", "skip_nonfinite")
WHOLE = [name for name in EVERY if name in SPECTRAL]  # a decomposition is of whole matrices
PLACES = [
    *[(name, ("mixed", check)) for name in DAILY for check in (True, False)],
    *[
        pytest.param(*place, marks=pytest.mark.wide)
        for place in [
            *in_turn([name for name in EVERY if name not in WHOLE], LAYOUTS, (True, False)),
            *in_turn(WHOLE, ["replicated"], (True, False)),
        ]
    ],
]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_sharding_maps_of_shards(name, place):
    layout, check_vma = place
    specs = LAYOUTS[layout]
    tx = EVERY[name](axis_name=specs)
    state = tx.init(PARAMS)
    states = state_layout(tx, PARAMS, specs, P())
    mapped = jax.shard_map(
        tx.update,
        mesh=mesh(),
        in_specs=(specs, states, specs),
        out_specs=(specs, states),
        check_vma=check_vma,
    )
    update, outs = jax.jit(mapped), []
    for gradient in STEPS:
        out, state = update(gradient, state, PARAMS)
        outs.append(out)
    same(name, outs, state)


def on_devices(x: np.ndarray, spec: P) -> np.ndarray:
    """An array as `pmap` takes it: its parts, or a copy for each of 8 devices."""
    return x.reshape(8, -1, *x.shape[1:]) if spec == P("i") else np.stack([x] * 8)


def together(x: np.ndarray, spec: P) -> np.ndarray:
    """The array of which these are the parts or copies; copies are alike."""
    if spec == P("i"):
        return np.asarray(x).reshape(-1, *x.shape[2:])
    np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
    return np.asarray(x[0])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *[(name, (spread,)) for name in DAILY[:1] for spread in (True, False)],
        *[pytest.param(*one, marks=pytest.mark.wide) for one in in_turn(EVERY, (True, False))],
    ],
)
def test_sharding_maps_of_pmap(name, place):
    """Shards, or copies."""
    [spread] = place
    spread = spread and name not in SPECTRAL
    divisible = {key for key, x in PARAMS.items() if x.ndim and x.shape[0] % 8 == 0}
    specs = {key: P("i") if spread and key in divisible else P() for key in PARAMS}
    tx = EVERY[name](**({"axis_name": specs} if spread else {}))
    states = state_layout(tx, PARAMS, specs, P())
    lay = functools.partial(jax.tree.map, on_devices)
    update = jax.pmap(tx.update, axis_name="i")
    state, params, outs = lay(tx.init(PARAMS), states), lay(PARAMS, specs), []
    for gradient in STEPS:
        out, state = update(lay(gradient, specs), state, params)
        outs.append(jax.tree.map(together, out, specs))
    same(name, outs, jax.tree.map(together, state, states))


@pytest.mark.parametrize("wrapper", ["skip_nonfinite", "skip_on_spike"])
def test_sharding_maps_all_devices_skip_or_none(wrapper):
    """Where nothing is tracked, a nan on one device is seen by all."""
    inner = optax.sgd(1.0, momentum=0.9)
    tx = getattr(jaxclip, wrapper)(inner, axis_name="i")
    state = jax.tree.map(lambda x: np.stack([x] * 8), tx.init(jnp.ones(2)))
    gradient = np.ones((8, 2), np.float32)
    gradient[3, 1] = np.nan
    out, after = jax.pmap(tx.update, axis_name="i")(gradient, state)
    np.testing.assert_array_equal(out, np.zeros((8, 2)))
    for before, x in zip(jax.tree.leaves(state.inner), jax.tree.leaves(after.inner), strict=True):
        np.testing.assert_array_equal(before, x)
