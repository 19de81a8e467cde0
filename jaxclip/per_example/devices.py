"""Values that differ from device to device, within `shard_map`, and batches on explicit axes."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ..devices import union, varying


def axes_of(tree: Any) -> tuple[str, ...]:
    """The mapped axes of `shard_map` along which some array of a tree varies."""
    return union(tuple(varying(x)) for x in jax.tree.leaves(tree))


def spec_of(aval: Any) -> tuple:
    """The explicit mesh axes that each dimension of an array's type is spread over."""
    spec = tuple(getattr(getattr(aval, "sharding", None), "spec", ()))
    return (*spec, *(None,) * (len(aval.shape) - len(spec)))


def sharding_of(x: Any, mesh: Any) -> NamedSharding:
    """How an array is spread over the explicit axes of a mesh."""
    return NamedSharding(mesh, PartitionSpec(*spec_of(jax.typeof(x))))


def mesh_of(tree: PyTree) -> Any:
    """The mesh with the axes that the types of arrays name."""
    meshes = [getattr(jax.typeof(x).sharding, "mesh", None) for x in jax.tree.leaves(tree)]
    return next((mesh for mesh in meshes if mesh is not None and not mesh.empty), None)


def batch_axes(batch: PyTree) -> Any:
    """The explicit mesh axes that a batch is spread over, None if it is not."""
    first = [spec_of(jax.typeof(x))[0] for x in jax.tree.leaves(batch)]
    return next((axes for axes in first if axes), None)


def at_least_at_once(size: int) -> int:
    """How many of a batch's examples to take at a time at least, for each device to have a share.

    Where the batch is spread is not known while a function is traced for automatic axes.
    """
    return math.gcd(size, jax.device_count())


def spread(batch: PyTree) -> PyTree:
    """A batch with every array spread over the explicit axes that one of them is spread over."""
    axes, mesh = batch_axes(batch), mesh_of(batch)
    if axes is None:
        return batch

    def one(x: Array) -> Array:
        spec = PartitionSpec(axes, *spec_of(jax.typeof(x))[1:])
        return jax.sharding.reshard(x, NamedSharding(mesh, spec))

    return jax.tree.map(one, batch)


def on_automatic_axes(f: Callable, batch: PyTree, shardings: Callable) -> Callable:
    """`f` with those explicit axes automatic that a batch is spread over.

    The loss is written for one example, and knows of no mesh. The partitioner finds the shardings
    of what becomes of a batch by itself.

    Args:
      f: a function of arrays alone, or of trees of them.
      batch: arrays with the batch as their first axis.
      shardings: of the results of `f`, given that of arrays with and of arrays without a batch.
    """
    axes, mesh = batch_axes(batch), mesh_of(batch)
    if axes is None:
        return f
    of_batch, of_rest = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((axes,), ()))
    return jax.sharding.auto_axes(f, axes=axes, out_sharding=shardings(of_batch, of_rest))
