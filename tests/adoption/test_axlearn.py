"""AXLearn: parameters in a record of their own, and states with a function for their layout."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.adoption import problem
from tests.helpers import METHODS, WRAPPERS

EVERY = {case.name: case.make for case in METHODS} | WRAPPERS


@dataclasses.dataclass
class OptParam:
    """A parameter, with what its optimizer may want to know of it."""

    value: Any
    weight_decay_scale: float | None = None


class Spec(NamedTuple):
    """The shape, the dtype and the layout of an array."""

    shape: tuple[int, ...]
    dtype: Any
    mesh_axes: P


class Partitioned(NamedTuple):
    """An Optax transformation, and the layout of its state."""

    init: Any
    update: Any
    partition: Any


def partitioned(tx: optax.GradientTransformation) -> Partitioned:
    """The adapter that an AXLearn user writes once, for every transformation of jaxclip."""

    def values(params):
        return jax.tree.map(lambda p: p.value, params, is_leaf=lambda x: isinstance(x, OptParam))

    def partition(specs):
        def is_spec(x):
            return isinstance(x, Spec)

        shapes = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), specs, is_leaf=is_spec
        )
        axes = jax.tree.map(lambda s: s.mesh_axes, specs, is_leaf=is_spec)
        return optax.tree.map_params(
            tx,
            lambda x, p, spec: Spec(x.shape, x.dtype, spec if x.shape == p.shape else P()),
            jax.eval_shape(tx.init, shapes),
            shapes,
            axes,
            transform_non_params=lambda x: Spec(x.shape, x.dtype, P()),
        )

    return Partitioned(
        lambda params: tx.init(values(params)),
        lambda updates, state, params: tx.update(updates, state, values(params)),
        partition,
    )


PARAMS = {name: OptParam(x, 1.0) for name, x in problem.arrays().items()}
SPECS = {
    "kernel": Spec((problem.WIDTH, problem.HIDDEN), jnp.float32, P("fsdp", "model")),
    "bias": Spec((problem.HIDDEN,), jnp.float32, P("model")),
    "output": Spec((problem.HIDDEN, 1), jnp.float32, P("model")),
}


def train(tx):
    def step(values, state, x, y):
        params = {name: OptParam(value, 1.0) for name, value in values.items()}
        updates, state = tx.update(jax.grad(problem.loss)(values, x, y), state, params)
        return optax.apply_updates(values, updates), state

    step, state, values = jax.jit(step), tx.init(PARAMS), problem.arrays()
    for x, y in problem.BATCHES:
        values, state = step(values, state, x, y)
    return values, state


def test_axlearn_the_same_numbers():
    wanted, _ = train(partitioned(optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))))
    found, state = train(partitioned(optax.chain(jaxclip.clip_by_global_norm(0.5), optax.sgd(0.1))))
    problem.same(found, wanted)
    assert jaxclip.metrics(state)["clip"].clip_rate > 0


@pytest.mark.parametrize("name", EVERY)
def test_axlearn_every_state_has_a_layout(name):
    tx = partitioned(EVERY[name]())
    layout, state = tx.partition(SPECS), jax.eval_shape(lambda: tx.init(PARAMS))
    specs, structure = jax.tree.flatten(layout, is_leaf=lambda x: isinstance(x, Spec))
    assert structure == jax.tree.structure(state)
    for spec, x in zip(specs, jax.tree.leaves(state), strict=True):
        assert (spec.shape, spec.dtype) == (x.shape, x.dtype)
        same_shape = {s.shape: s.mesh_axes for s in SPECS.values()}
        assert spec.mesh_axes == same_shape.get(x.shape, P())
