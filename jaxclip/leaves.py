"""The leaves of a tree: which have a norm, and what a factor does to them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .norms import working_dtype

Path = jax.tree_util.KeyPath


def is_measured(x: Any) -> bool:
    """Whether a leaf has a norm: it is floating or complex."""
    dtype = getattr(x, "dtype", None)
    return isinstance(x, float | complex) if dtype is None else jnp.issubdtype(dtype, jnp.inexact)


def measured(updates: optax.Updates) -> optax.Updates:
    """Returns the updates, with None for what has no norm."""
    return jax.tree.map(lambda x: jnp.asarray(x) if is_measured(x) else None, updates)


def replaced(updates: optax.Updates, new: optax.Updates) -> optax.Updates:
    """The updates, with a new array wherever there is one."""
    return jax.tree.map(lambda x, y: x if y is None else y, updates, new)


def scale(x: Any, factor: Float[Array, "..."]) -> Any:
    """Multiplies by a factor in float32 at least; exactly nothing at 1, exactly zero at 0.

    What cannot be measured is returned as it is.
    """
    if not is_measured(x):
        return x
    x = jnp.asarray(x)
    product = x.astype(working_dtype(x.dtype)) * factor.astype(working_dtype(x.dtype))
    # By selection and not by arithmetic: 0 * nan is nan, and 1 * x flushes the smallest numbers.
    moved = jnp.where(factor == 0, jnp.zeros((), x.dtype), product.astype(x.dtype))
    return jnp.where(factor == 1, x, moved)


def leaves_with_path(tree: PyTree) -> tuple[list[tuple[Path, Any]], Any]:
    """Flattens a tree, with paths that are the same at `init` and at every update.

    Flax NNX gives `init` variables, whose path ends in `.value`, and `update` the arrays in them.
    """
    entries, treedef = jax.tree_util.tree_flatten_with_path(tree)
    value = jax.tree_util.GetAttrKey("value")
    return [(path[:-1] if path[-1:] == (value,) else path, x) for path, x in entries], treedef
