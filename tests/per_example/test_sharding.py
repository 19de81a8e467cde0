"""A batch spread over devices: nothing gathers activations, and the sum is right."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxclip import per_example

from .helpers import FAST, cast, distance
from .models import BATCH
from .zoo import ZOO


def spread(name):
    """A model with a batch of 16 over 8 devices, and what a single device makes of it."""
    model = ZOO[name]()
    params, batch = cast(model.params, "float32"), cast(model.batch, "float32")
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x + 0, x])[:16], batch)
    assert BATCH * 3 >= 16
    clip = per_example.clipped_grad(model.loss, 0.5, reduce="sum")
    wanted, info = jax.jit(clip, compiler_options=FAST)(params, *batch)
    return clip, params, batch, wanted, info


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "transformer tied"])
def test_automatic_sharding_gathers_nothing(name):
    clip, params, batch, wanted, info = spread(name)
    by_batch = NamedSharding(mesh(), PartitionSpec("data"))
    whole = NamedSharding(mesh(), PartitionSpec())
    batch = jax.device_put(batch, by_batch)
    params = jax.device_put(params, whole)
    compiled = jax.jit(clip, compiler_options=FAST).lower(params, *batch).compile()
    collectives = set(
        re.findall(r"(all-\w+|reduce-scatter|collective-permute)\(", compiled.as_text())
    )
    assert collectives == {"all-reduce"}
    gradient, found = compiled(params, *batch)
    assert distance(gradient, wanted) < 1e-5
    assert distance(found.norms, info.norms) < 1e-5


@pytest.mark.parametrize("name", ["cnn", "scanned layers with remat"])
def test_shard_map_sums_its_own_examples(name):
    clip, params, batch, wanted, info = spread(name)

    def local(params, *batch):
        gradient, info = clip(params, *batch)
        return lax.psum(gradient, "data"), info.norms

    parts = (PartitionSpec(), *(PartitionSpec("data") for _ in batch))
    run = jax.jit(
        jax.shard_map(
            local, mesh=mesh(), in_specs=parts, out_specs=(PartitionSpec(), PartitionSpec("data"))
        ),
        compiler_options=FAST,
    )
    gradient, norms = run(params, *batch)
    assert distance(gradient, wanted) < 1e-5
    assert distance(norms, info.norms) < 1e-5


def test_shard_map_with_vmap_clips_before_it_adds():
    model = ZOO["mlp"]()
    params, batch = cast(model.params, "float32"), cast(model.batch, "float32")
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x, x])[:16], batch)
    clip = per_example.clipped_grad(model.loss, 0.1, reduce="sum", strategy="vmap")
    wanted, _ = jax.jit(clip, compiler_options=FAST)(params, *batch)
    parts = (PartitionSpec(), PartitionSpec("data"), PartitionSpec("data"))
    run = jax.shard_map(
        lambda *a: lax.psum(clip(*a)[0], "data"),
        mesh=mesh(),
        in_specs=parts,
        out_specs=PartitionSpec(),
    )
    assert distance(jax.jit(run, compiler_options=FAST)(params, *batch), wanted) < 1e-5


def test_sharded_parameters():
    clip, params, batch, wanted, _ = spread("transformer tied")
    devices = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    batch = jax.device_put(batch, NamedSharding(devices, PartitionSpec("data")))
    specs = jax.tree.map(lambda x: PartitionSpec(*(None,) * (x.ndim - 1), "model"), params)
    params = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(devices, s)), params, specs)
    gradient, _ = jax.jit(clip, compiler_options=FAST)(params, *batch)
    assert distance(gradient, wanted) < 1e-5


def losses(params, x, y):
    return jnp.sum((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def small_problem():
    rng = np.random.default_rng(0)
    shapes = ((3, 4), (4, 2), (16, 5, 3), (16, 5, 2))
    w, v, x, y = (jnp.array(rng.normal(size=s), jnp.float32) for s in shapes)
    return {"w": w, "v": v}, (x, y)


WAYS = {
    "auto": {},
    "vmap": {"strategy": "vmap"},
    "microbatch": {"strategy": "microbatch", "microbatch_size": 8},
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("way", WAYS)
def test_every_strategy_on_every_kind_of_axis(way, kind):
    params, batch = small_problem()
    clip = per_example.clipped_grad(losses, 1.0, **WAYS[way])
    wanted, info = jax.jit(clip, compiler_options=FAST)(params, *batch)
    spread_params = jax.device_put(params, NamedSharding(mesh(kind), PartitionSpec()))
    x, y = batch
    # An array that is whole on every device goes along with those that are spread.
    spread_batch = jax.device_put(x, NamedSharding(mesh(kind), PartitionSpec("data"))), y
    compiled = jax.jit(clip, compiler_options=FAST).lower(spread_params, *spread_batch).compile()
    assert set(re.findall(r"(all-\w+|collective-permute)\(", compiled.as_text())) == {"all-reduce"}
    gradient, found = compiled(spread_params, *spread_batch)
    assert distance(gradient, wanted) < 1e-5
    assert distance(found.norms, info.norms) < 1e-5
    assert distance(found.values, info.values) < 1e-5


@pytest.mark.parametrize("name", ["cnn", "lstm", "mlp", "transformer tied"])
@pytest.mark.parametrize("in_context", [True, False])
def test_explicit_axes(name, in_context):
    clip, params, batch, wanted, info = spread(name)
    batch = jax.device_put(batch, NamedSharding(mesh(AxisType.Explicit), PartitionSpec("data")))
    params = jax.device_put(params, NamedSharding(mesh(AxisType.Explicit), PartitionSpec()))
    norms = per_example.norms(ZOO[name]().loss)
    context = jax.set_mesh(mesh(AxisType.Explicit)) if in_context else contextlib.nullcontext()
    with context:
        gradient, found = jax.jit(clip, compiler_options=FAST)(params, *batch)
        alone = jax.jit(norms, compiler_options=FAST)(params, *batch)
    assert distance(gradient, wanted) < 1e-5
    assert distance(found.norms, info.norms) < 1e-5
    assert distance(alone, info.norms) < 1e-5


@pytest.mark.parametrize("in_context", [True, False])
def test_weights_that_are_computed_on_explicit_axes(in_context):
    def loss(w, x):  # with a normalized weight, and a penalty
        return jnp.sum((x @ (w / (1 + jnp.sum(w**2)))) ** 2) + jnp.sum(w**2)

    w, x = jnp.ones((4, 3)), jnp.arange(64.0).reshape(16, 4) / 64
    clip = per_example.clipped_grad(loss, 0.5)
    wanted, _ = clip(w, x)
    x = jax.device_put(x, NamedSharding(mesh(AxisType.Explicit), PartitionSpec("data")))
    context = jax.set_mesh(mesh(AxisType.Explicit)) if in_context else contextlib.nullcontext()
    with context:
        assert distance(jax.jit(clip)(w, x)[0], wanted) < 1e-6
        assert distance(clip(w, x)[0], wanted) < 1e-6  # eager


def test_what_explicit_axes_cannot_do_is_refused():
    params, batch = small_problem()
    devices = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    batch = jax.device_put(batch, NamedSharding(devices, PartitionSpec("data")))
    for size in (5, 2):
        clip = per_example.clipped_grad(losses, 1.0, strategy="microbatch", microbatch_size=size)
        with pytest.raises(ValueError, match="multiple of 4 that divides 16"):
            jax.jit(clip)(params, *batch)
    params["v"] = jax.device_put(params["v"], NamedSharding(devices, PartitionSpec(None, "model")))
    with pytest.raises(ValueError, match=r"params\['v'\].*explicit axes"):
        jax.jit(per_example.clipped_grad(losses, 1.0))(params, *batch)
    wanted, _ = per_example.clipped_grad(losses, 1.0)(small_problem()[0], *small_problem()[1])
    clip = per_example.clipped_grad(losses, 1.0, strategy="vmap")
    assert distance(jax.jit(clip, compiler_options=FAST)(params, *batch)[0], wanted) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_differ_where_the_batch_does_not_are_refused(way):
    params, batch = small_problem()
    devices = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    by_model = {"w": PartitionSpec(None, "model"), "v": PartitionSpec("model")}

    def tensor_parallel(params, x, y):
        return jnp.sum((lax.psum(jnp.tanh(x @ params["w"]) @ params["v"], "model") - y) ** 2)

    def local(params, *batch):
        clip = per_example.clipped_grad(tensor_parallel, 1.0, **WAYS[way])
        return jax.tree.map(lambda g: lax.psum(g, "data"), clip(params, *batch)[0])

    specs = (by_model, PartitionSpec("data"), PartitionSpec("data"))
    run = jax.shard_map(local, mesh=devices, in_specs=specs, out_specs=by_model)
    with pytest.raises(ValueError, match=r"params\['v'\].* along \['model'\]"):
        jax.jit(run)(params, *batch)
