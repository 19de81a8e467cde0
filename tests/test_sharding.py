"""Every method and wrapper on 8 devices, in every layout that trainers use.

Clipped there, two steps give the updates and the states that they give on one device, take the
states that they return without being compiled again, and write over what is donated.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.helpers import METHODS, WRAPPERS
from tests.hlo import collectives

EVERY = {case.name: case.make for case in METHODS} | WRAPPERS
SPECTRAL = ("clip_singular_values", "newton_schulz")
SHAPES = {"both": (8, 8), "data": (8, 4), "model": (4, 8), "vector": (8,), "number": ()}
LAYOUTS = {
    "replicated": {name: P() for name in SHAPES},
    "fully sharded": {name: P("data") if shape else P() for name, shape in SHAPES.items()},
    "tensor parallel": {
        name: P(*[None] * (len(shape) - 1), "model") if shape else P()
        for name, shape in SHAPES.items()
    },
    "mixed": {
        "both": P("data", "model"),
        "data": P("data"),
        "model": P(None, "model"),
        "vector": P("model"),
        "number": P(),
    },
}


def gradients(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: np.float32(rng.normal(size=shape)) for k, shape in SHAPES.items()}


PARAMS = gradients(9)
STEPS = [gradients(seed) for seed in range(2)]


def mesh(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


@functools.cache
def alone(name: str) -> tuple[list, Any]:
    """The updates of both steps, and the state after them, on one device."""
    tx = EVERY[name]()
    update, state, outs = jax.jit(tx.update), tx.init(PARAMS), []
    for gradient in STEPS:
        out, state = update(gradient, state, PARAMS)
        outs.append(out)
    return outs, state


def same(name: str, outs: list, state: Any) -> None:
    """Asserts that updates and states are those of one device."""
    # Decompositions, and deviations, which are small differences of large norms, lose digits.
    rtol = 4e-6 if name in (*SPECTRAL, "zclip") else 1e-6
    for found, wanted in zip(
        jax.tree.leaves((outs, state)), jax.tree.leaves(alone(name)), strict=True
    ):
        scale = np.max(np.abs(wanted), initial=0) if np.all(np.isfinite(wanted)) else 1
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * float(scale))


def state_layout(tx: Any, params: Any, layout: Any, whole: NamedSharding) -> Any:
    """Parts of a state that are as large as a parameter lie as it does, all others everywhere."""
    return optax.tree.map_params(
        tx,
        lambda x, p, sharding: sharding if x.shape == p.shape else whole,
        jax.eval_shape(tx.init, params),
        params,
        layout,
        transform_non_params=lambda x: whole,
    )


def compiled_step(name: str, layout: str, kind: AxisType) -> tuple[Any, Any, dict, Callable]:
    """The compiled update; the state and parameters to begin with; and how to lay a gradient."""
    tx, devices = EVERY[name](), mesh(kind)
    whole = NamedSharding(devices, P())
    shardings = {key: NamedSharding(devices, spec) for key, spec in LAYOUTS[layout].items()}
    params = jax.device_put(PARAMS, shardings)
    state = jax.device_put(tx.init(params), state_layout(tx, PARAMS, shardings, whole))
    place = functools.partial(jax.device_put, device=shardings)
    jitted = jax.jit(tx.update, donate_argnums=(0, 1))
    return jitted.lower(place(STEPS[0]), state, params).compile(), state, params, place


def run(compiled: Any, state: Any, params: Any, place: Callable) -> tuple[list, Any]:
    outs = []
    for gradient in STEPS:
        given = place(gradient)
        out, after = compiled(given, state, params)
        # Numbers of the state that nothing reads, such as the last norm, are left where they are.
        arrays = [x for x in jax.tree.leaves(state) if x.ndim and x.size]
        assert all(x.is_deleted() for x in [*jax.tree.leaves(given), *arrays])
        for x, wanted in zip(jax.tree.leaves(out), jax.tree.leaves(given), strict=True):
            assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
        outs, state = [*outs, out], after
    return outs, state


# Mesh axes that arrays of a layout are spread over: sums over each are one message a round.
SPREAD = {"replicated": 0, "fully sharded": 1, "tensor parallel": 1, "mixed": 2}
# Sums of a round depend on those of the round before, or have another dtype.
ROUNDS = {
    # The metrics: sizes, and how many entries were clipped.
    **dict.fromkeys(("clip_by_value", "u_clip", "spam_clip"), 2),
    **dict.fromkeys(("clip_weights", "clip_weights_by_fan_in"), 2),
    # The norms of the units, whether all are in range, and the metrics.
    **dict.fromkeys(("clip_by_unit_norm", "adaptive_grad_clip"), 4),
}


def check_communication(name: str, layout: str, compiled: jax.stages.Compiled) -> None:
    """Asserts that nothing but numbers crosses devices, and in how few messages."""
    found = collectives(compiled)
    assert {one.kind for one in found} <= {"all-reduce"}
    assert len(found) <= SPREAD[layout] * ROUNDS.get(name, 1)
    largest = max((size for one in found for size in one.sizes), default=1)
    assert largest <= (8 if ROUNDS.get(name) == 4 else 1)
    # Of an extreme gradient no leaf is gathered either, but numbers may be.
    assert all(max(one.sizes) < 64 for one in collectives(compiled, rare=True))


def check(name: str, layout: str, kind: AxisType) -> None:
    compiled, *start = compiled_step(name, layout, kind)
    same(name, *run(compiled, *start))
    if name not in SPECTRAL:
        check_communication(name, layout, compiled)


LONG = ("newton_schulz",)  # to compile; it has tests of its own below


DAILY = ("clip_by_global_norm", "clip_by_unit_norm", "clip_by_value", "zclip", "skip_nonfinite")


@pytest.mark.parametrize(
    "name",
    [
        name if name in DAILY else pytest.param(name, marks=pytest.mark.wide)
        for name in EVERY
        if name not in LONG
    ],
)
def test_sharding_mixed(name):
    check(name, "mixed", AxisType.Auto)


KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def in_turn(names: Iterable[str], *choices: Iterable) -> list[tuple]:
    """The names, each with one of the combinations: all of them take hours to compile."""
    return list(zip(names, itertools.cycle(itertools.product(*choices)), strict=False))


@pytest.mark.wide
@pytest.mark.parametrize(("name", "place"), in_turn(EVERY, LAYOUTS, KINDS))
def test_sharding_every_layout(name, place):
    layout, kind = place
    check(name, layout, KINDS[kind])


@pytest.mark.parametrize("name", ["clip_by_value", "clip_weights"])
def test_sharding_clipping_by_value_communicates_for_its_metrics_alone(name):
    tx = EVERY[name]()
    shardings = {k: NamedSharding(mesh(), spec) for k, spec in LAYOUTS["mixed"].items()}
    given = jax.device_put(PARAMS, shardings)
    state = jax.eval_shape(tx.init, PARAMS)
    updates = jax.jit(lambda g, s, p: tx.update(g, s, p)[0])
    assert collectives(updates.lower(given, state, given).compile()) == []


def spectral_collectives(method: str, kind: AxisType, layout: dict[str, tuple]) -> list:
    """What a step sends, of matrices of these shapes in these layouts."""
    tx, devices = jaxclip.clip_singular_values(0.5, method=method), mesh(kind)
    rng = np.random.default_rng(0)
    whole = {key: np.float32(rng.normal(size=shape)) for key, (shape, _) in layout.items()}
    shardings = {key: NamedSharding(devices, spec) for key, (_, spec) in layout.items()}
    state, update = tx.init(whole), jax.jit(tx.update)
    with jax.set_mesh(devices):
        given = jax.device_put(whole, shardings)
        compiled = update.lower(given, state).compile()
        out, _ = compiled(given, state)
    for key, wanted in update(whole, state)[0].items():
        np.testing.assert_allclose(out[key], wanted, atol=2e-6)
        assert out[key].sharding.is_equivalent_to(shardings[key], 2)
    return collectives(compiled)


def test_sharding_newton_schulz_gathers_nothing_of_a_matrix_spread_over_one_explicit_axis():
    layout = {"shorter": ((16, 8), P(None, "data")), "longer": ((8, 16), P(None, "data"))}
    found = spectral_collectives("newton_schulz", AxisType.Explicit, layout)
    assert {one.kind for one in found} == {"all-reduce", "all-to-all"}
    # The shorter one is dealt out along its longer axis, and back: a share of it each time.
    assert [one for one in found if one.kind == "all-to-all"] == [("all-to-all", (8,) * 4)] * 2


def test_sharding_newton_schulz_gathers_the_shorter_axis_once():
    layout = {"longer": ((16, 8), P("data")), "both": ((8, 16), P("data", "model"))}
    found = spectral_collectives("newton_schulz", AxisType.Auto, layout)
    assert {one.kind for one in found} == {"all-reduce", "all-gather"}
    assert [one for one in found if one.kind == "all-gather"] == [("all-gather", (64,))]


def test_sharding_decompositions_gather_every_matrix_once():
    layout = {"rows": ((16, 8), P("data")), "columns": ((8, 16), P(None, "model"))}
    found = spectral_collectives("svd", AxisType.Auto, layout)
    assert {one.kind for one in found} == {"all-reduce", "all-gather"}
    assert sum(sum(one.sizes) for one in found if one.kind == "all-gather") == 2 * 16 * 8
