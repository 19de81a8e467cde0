"""Values that differ from device to device, within `shard_map`."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array


def axes_of(tree: Any) -> tuple[str, ...]:
    """The mapped axes of `shard_map` along which some array of a tree varies."""
    names = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)]
    return tuple(sorted(frozenset().union(*names)))


def varying(x: Array, axes: Sequence[str]) -> Array:
    """A value as one that differs along these axes, though it does not."""
    missing = tuple(axis for axis in axes if axis not in jax.typeof(x).manual_axis_type.varying)
    return lax.pcast(x, missing, to="varying") if missing else x
