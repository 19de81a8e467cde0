"""Devices within `shard_map` or `pmap`: which hold what, and one collective for many numbers."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

Names = tuple[str, ...]


class Across(NamedTuple):
    """The mapped axes of `shard_map` or `pmap` that one block is measured across.

    Attributes:
      axes: their names; the block is that of all devices along them.
      copies: for each array of the block, how many of these devices hold the same entries of it.
    """

    axes: Names = ()
    copies: tuple[int, ...] = ()


def across(spread: Sequence[Sequence[Names]], apart: Sequence[Names] = ()) -> list[Across]:
    """What each block is measured across, all of them by one collective where that can be.

    A block that is spread over some axes is summed over all axes that any block is spread over,
    where its arrays count once: two kinds of sharding in a tree cost no second collective, and all
    devices come to the same number, whatever they hold.

    Args:
      spread: of each array of each block, the axes along which its entries are.
      apart: of each block, the axes along which every device has blocks of its own.
    """
    apart = apart or [()] * len(spread)
    every = union(names for block in spread for names in block)

    def of_block(block: Sequence[Names], own: Names) -> Across:
        axes = tuple(name for name in every if name not in own) if any(block) else ()
        return Across(axes, tuple(devices(set(axes) - set(names)) for names in block))

    return [of_block(block, own) for block, own in zip(spread, apart, strict=True)]


def union(names: Iterable[Names]) -> Names:
    """All of the names, in order."""
    return tuple(sorted({name for some in names for name in some}))


def along(names: Iterable[str], x: Any) -> Names:
    """Those of the names over which `x` varies, or may vary, where nothing tracks it."""
    return union([tuple(n for n in names if not is_tracked(n) or n in varying(x))])


def devices(names: Iterable[str]) -> int:
    """The number of devices along some mapped axes."""
    return math.prod(lax.axis_size(name) for name in sorted(names))


def over_devices(collective: Callable, axes: Names, arrays: Sequence[Array]) -> list[Array]:
    """Reduces arrays over mapped axes: one collective for all that have one dtype."""
    if not axes:
        return list(arrays)
    by_dtype: dict[jnp.dtype, list[int]] = {}
    for k, x in enumerate(arrays):
        by_dtype.setdefault(jnp.dtype(x.dtype), []).append(k)
    found = {}
    for members in by_dtype.values():
        parts = [arrays[k] for k in members]
        if len(parts) == 1:
            found[members[0]] = collective(spread_out(parts[0], axes), axes)
            continue
        flat = jnp.concatenate([spread_out(x.ravel(), axes) for x in parts])
        ends = list(itertools.accumulate(x.size for x in parts))
        pieces = jnp.split(collective(flat, axes), ends[:-1])
        found |= {k: p.reshape(arrays[k].shape) for k, p in zip(members, pieces, strict=True)}
    return [found[k] for k in range(len(arrays))]


def spread_out(x: Array, axes: Iterable[str]) -> Array:
    """The array, typed as one that may vary over the axes, where `shard_map` tracks that."""
    missing = tuple(name for name in axes if is_tracked(name) and name not in varying(x))
    return _pvary(x, missing) if missing else x


def on_mesh_of(arrays: Any, shapes: Any) -> Any:
    """Shapes on the mesh that arrays with explicit axes are on, so that arrays of them can be made.

    Outside of `jit` and of `jax.set_mesh`, what is traced of such arrays has an abstract mesh, and
    of an abstract mesh there are no arrays.
    """
    leaves = [x for x in jax.tree.leaves(arrays) if isinstance(x, jax.Array)]
    explicit = [x for x in leaves if AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types]
    layouts = [x.sharding for x in explicit]
    meshes = [x.mesh for x in layouts if isinstance(x, NamedSharding) and isinstance(x.mesh, Mesh)]
    if not meshes:
        return shapes

    def placed(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = getattr(shape.sharding, "spec", PartitionSpec())
        layout = NamedSharding(meshes[0], spec)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=layout)

    return jax.tree.map(placed, shapes)


def is_tracked(name: str) -> bool:
    """Whether types say what varies over a mapped axis."""
    return name in varying(lax.axis_index(name))


def varying(x: Any) -> frozenset[str]:
    """The mapped axes over which an array is known to vary."""
    kind = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def struct(like: Any, shape: tuple[int, ...], **options: Any) -> jax.ShapeDtypeStruct:
    """The type of an array of another shape, which varies as the array of a type does.

    Args:
      like: the type.
      shape: the shape.
      **options: as of `jax.ShapeDtypeStruct`.
    """
    name = "manual_axis_type" if hasattr(like, "manual_axis_type") else "vma"
    return jax.ShapeDtypeStruct(shape, like.dtype, **{name: getattr(like, name)}, **options)


# JAX 0.8 calls it so, and `manual_axis_type` above `vma`.
_pvary = getattr(lax, "pvary", None) or functools.partial(lax.pcast, to="varying")
