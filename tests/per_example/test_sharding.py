"""A batch spread over devices: nothing gathers activations, and the sum is right."""

import re

import jax
import jax.numpy as jnp
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
