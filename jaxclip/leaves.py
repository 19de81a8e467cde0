"""The leaves of a tree: which have a norm, and how a factor scales them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .norms import working_dtype

Path = jax.tree_util.KeyPath


def is_measured(x: Any) -> bool:
    """Whether a leaf has a norm: it is floating or complex."""
    dtype = getattr(x, "dtype", None)
    return isinstance(x, float | complex) if dtype is None else jnp.issubdtype(dtype, jnp.inexact)


def is_none(x: Any) -> bool:
    """Whether a place in a tree holds None, which JAX takes for a subtree without leaves."""
    return x is None


def is_absent(x: Any) -> bool:
    """Whether a place in a tree holds None, or what Optax puts where a mask is false."""
    return x is None or isinstance(x, optax.MaskedNode)


def as_arrays(tree: PyTree) -> PyTree:
    """The tree, with arrays in place of Python numbers that have a norm."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float | complex) else x, tree)


def measurable(updates: optax.Updates) -> optax.Updates:
    """Returns the updates, with None for what has no norm."""
    return jax.tree.map(lambda x: jnp.asarray(x) if is_measured(x) else None, updates)


def places(updates: PyTree) -> np.ndarray | None:
    """Where in `names` the leaves are that have a norm; None where all that there are have one."""
    leaves = jax.tree.leaves(updates, is_leaf=is_absent)
    measured = [k for k, x in enumerate(leaves) if is_measured(x)]
    return None if len(measured) == len(leaves) else np.array(measured, np.int32)


def replace_measured(updates: optax.Updates, new: optax.Updates) -> optax.Updates:
    """The updates, with a new array wherever there is one."""
    return jax.tree.map(lambda x, y: x if y is None else y, updates, new)


def donatable(state: PyTree) -> PyTree:
    """The state with an array of its own in every place, as two of one cannot be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True) if isinstance(x, jax.Array) else x, state)


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """What blocks are multiplied by: two numbers, one after the other.

    Two reach further than one: a norm of 3e38 and a limit of 1 have the factor 3e-39, which float32
    flushes to 0.

    Attributes:
      first: the first number, of every block; 1 leaves a block as it is, 0 makes it zero.
      second: the second number, 1 unless the product is out of range.
    """

    first: Float[Array, "*blocks"]
    second: Float[Array, "*blocks"]

    def times(self, x: Array) -> Array:
        """Multiplies an array that the blocks broadcast to."""
        return x * self.first * self.second

    def map(self, change: Callable[[Array], Array]) -> "Factor":
        """The same change of both numbers, such as of their shape."""
        return Factor(change(self.first), change(self.second))


def as_factor(factor: Any) -> Factor:
    """Makes a factor of a single number."""
    return factor if isinstance(factor, Factor) else Factor(factor, jnp.ones_like(factor))


def scale(x: Any, factor: Factor | Float[Array, "..."]) -> Any:
    """Multiplies by a factor in float32 at least; exactly nothing at 1, exactly zero at 0.

    What cannot be measured is returned as it is.
    """
    if not is_measured(x):
        return x
    factor = as_factor(factor)
    return _scaled(jnp.asarray(x), factor.first, factor.second)


@jax.jit  # traced once for all arrays that are alike, and outside of another `jit` one program
def _scaled(x: Array, first: Array, second: Array) -> Array:
    wide = working_dtype(x.dtype)
    product = Factor(first.astype(wide), second.astype(wide)).times(x.astype(wide))
    # By selection and not by arithmetic: 0 * nan is nan, and 1 * x flushes the smallest numbers.
    moved = jnp.where(first == 0, jnp.zeros((), x.dtype), product.astype(x.dtype))
    return jnp.where(first == 1, x, moved)


def leaves_with_path(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[tuple[Path, Any]], Any]:
    """Flattens a tree, with paths that are the same at `init` and at every update.

    Flax NNX gives `init` variables, whose path ends in `.value`, and `update` the arrays in them.
    """
    entries, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    value = jax.tree_util.GetAttrKey("value")
    return [(path[:-1] if path[-1:] == (value,) else path, x) for path, x in entries], treedef
