"""The scope of a clip: which leaves of a tree it measures and scales, and where they lie."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec
from jax.tree_util import keystr
from jaxtyping import Array, PyTree

from .devices import Across, Names, across, along, devices, union, varying
from .leaves import Path, is_measured, leaves_with_path, scale

AxisName = PyTree[str | tuple[str, ...] | PartitionSpec | None]
Mask = PyTree[bool] | Callable[[str], bool] | None


class Spread(NamedTuple):
    """The mapped axes that an array is spread over.

    Attributes:
      blocks: those that its blocks are spread over, so that a norm is of several devices.
      apart: those along which every device has blocks of its own.
    """

    blocks: Names
    apart: Names


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A leaf that is measured.

    Attributes:
      index: its number among all leaves.
      path: where it is.
      array: what it holds.
      axis_name: what is said of the mapped axes that it is spread over.
    """

    index: int
    path: Path
    array: Array
    axis_name: str | Names | PartitionSpec | None


@dataclasses.dataclass(frozen=True, eq=False)
class Scope:
    """Which leaves a clip measures and scales, and the devices that they are spread over.

    Attributes:
      axis_name: the mapped axes that leaves are spread over, a tree that is a prefix of theirs.
      measure_mask: which leaves are measured, such a tree or a function of the path; None is all.
      apply_mask: which leaves are scaled, likewise.
      shapes_only: whether nothing but shapes is wanted, as by `init`, which may run outside of the
        map that has these axes.
      grad_norm: the norm of all leaves together, where the caller has it already.
      by_leaf: whether the norms of the leaves are wanted beside that of all.
    """

    axis_name: AxisName = None
    measure_mask: Mask = None
    apply_mask: Mask = None
    shapes_only: bool = False
    grad_norm: Array | None = None
    by_leaf: bool = False

    def __post_init__(self) -> None:
        for names in jax.tree.leaves(self.axis_name, is_leaf=is_axis_name):
            if not is_axis_name(names):
                raise TypeError(
                    f"`axis_name` holds {names!r}, which names no mapped axis. Give a name, a "
                    "tuple of names, a `PartitionSpec`, or a tree of these."
                )

    def or_else(self, axis_name: AxisName) -> "Scope":
        """This scope; where it names no axis, with those that a norm is across."""
        return (
            self if self.axis_name is not None else dataclasses.replace(self, axis_name=axis_name)
        )

    def leaves(self, updates: optax.Updates) -> list[Leaf]:
        """The leaves that are measured, in order."""
        measured = _chosen(self.measure_mask, updates, "measure_mask")
        entries, _ = leaves_with_path(updates)
        said = spread_prefix(self.axis_name, updates, "`axis_name` has", is_axis_name)
        return [
            Leaf(k, path, jnp.asarray(x), names)
            for k, ((path, x), names) in enumerate(zip(entries, said, strict=True))
            if is_measured(x) and measured[k]
        ]

    def measured(self, updates: optax.Updates) -> optax.Updates:
        """The updates, with None for leaves that are not measured."""
        leaves, treedef = jax.tree.flatten(updates)
        known = {leaf.index for leaf in self.leaves(updates)}
        return treedef.unflatten([x if k in known else None for k, x in enumerate(leaves)])

    def scaled(self, updates: optax.Updates, factors: Sequence[Any]) -> optax.Updates:
        """The updates, of which those leaves that are to be scaled have a factor each."""
        leaves, treedef = jax.tree.flatten(updates)
        applied = _chosen(self.apply_mask, updates, "apply_mask")
        each = zip(leaves, factors, applied, strict=True)
        return treedef.unflatten([scale(x, f) if apply else x for x, f, apply in each])

    def own(self, updates: optax.Updates) -> optax.Updates:
        """The updates, with None for leaves that are not both measured and scaled."""
        leaves, treedef = jax.tree.flatten(updates)
        measured = _chosen(self.measure_mask, updates, "measure_mask")
        applied = _chosen(self.apply_mask, updates, "apply_mask")
        both = zip(leaves, measured, applied, strict=True)
        return treedef.unflatten([x if one and other else None for x, one, other in both])

    def spread(self, leaf: Leaf, kept: Sequence[int] = (), *, alone: bool = False) -> Spread:
        """The mapped axes that a leaf is spread over.

        Args:
          leaf: the leaf.
          kept: the axes of the array that its blocks keep.
          alone: whether a block is never spread over devices, as no entry is.

        Raises:
          ValueError: it varies over a mapped axis and nothing is said about it; or an axis is named
            and nothing says which axis of the array is spread over it, one that is kept or not.
        """
        named = leaf.axis_name
        if named is None:
            self._refuse_silence(leaf)
            return Spread((), ())
        if isinstance(named, PartitionSpec):
            blocks, apart = _by_dimension(named, kept, leaf)
        else:
            blocks, apart = ((named,) if isinstance(named, str) else named), ()
        blocks, apart = self._present(blocks, leaf.array), self._present(apart, leaf.array)
        if alone:
            return Spread((), union([blocks, apart]))
        if blocks and not isinstance(named, PartitionSpec) and kept:
            if len(kept) == leaf.array.ndim:
                return Spread((), blocks)
            self._refuse_name(leaf, blocks, f"every index along {tuple(kept)} is a block")
        return Spread(blocks, apart)

    def shape(self, leaf: Leaf) -> tuple[int, ...]:
        """The shape that a leaf has over all devices.

        Raises:
          ValueError: it is spread over a mapped axis, and nothing says along which of its own.
        """
        if isinstance(leaf.axis_name, PartitionSpec):
            names = [self._present(_names(entry), leaf.array) for entry in leaf.axis_name]
            names += [()] * (leaf.array.ndim - len(names))
            return tuple(
                length * devices(over) for length, over in zip(leaf.array.shape, names, strict=True)
            )
        over = self._present(_names(leaf.axis_name), leaf.array)
        if over and leaf.array.ndim > 1:
            self._refuse_name(leaf, over, "its shape over all devices is wanted")
        return tuple(length * devices(over) for length in leaf.array.shape)

    def undivided(self, leaf: Leaf, kept: Sequence[int]) -> Names:
        """The mapped axes along which every device has matrices of its own.

        Args:
          leaf: the leaf.
          kept: the axes of the array along which it is a stack of matrices.

        Raises:
          ValueError: a matrix is spread over a mapped axis.
        """
        over, apart = self.spread(leaf, kept)
        if over:
            raise ValueError(
                f"{_the(leaf)} is spread over the mapped axis {over[0]!r}, and singular values are "
                "those of a whole matrix. Gather it first, as by `jax.lax.all_gather`, or give "
                "`axis_name=()` if every device has a matrix of its own."
            )
        return apart

    def everywhere(self, x: Array, name: str) -> Array:
        """The mean over all named axes of a number that every device may have one of its own.

        Args:
          x: the number.
          name: how an error message calls it.
        """
        leaves = jax.tree.leaves(self.axis_name, is_leaf=is_axis_name)
        if all(names is None for names in leaves):
            self._refuse_silence(Leaf(0, (), x, None), f"`{name}`")
            return x
        axes = self._present(union(map(_names, leaves)), x)
        return lax.psum(x / devices(axes), axes) if axes else x

    def _present(self, names: Names, x: Array) -> Names:
        """Those of the names over which `x` varies, or may vary, where nothing tracks it."""
        if self.shapes_only:
            names = tuple(name for name in names if _is_mapped(name))
        return along(names, x)

    def _refuse_name(self, leaf: Leaf, over: Names, because: str) -> None:
        raise ValueError(
            f"{_the(leaf)}, of shape {leaf.array.shape}, is spread over the mapped axis "
            f"{over[0]!r}, and {because}, but nothing says which axis of the array is spread. Give "
            "`axis_name` the `PartitionSpec` of the leaf, as `shard_map` has it in `in_specs`."
        )

    def _refuse_silence(self, leaf: Leaf, what: str = "") -> None:
        over = sorted(varying(leaf.array))
        if over and not self.shapes_only:
            raise ValueError(
                f"{what or _the(leaf)} varies over the mapped axis {over[0]!r}, and nothing says "
                f"whether all devices are to be measured together. Give `axis_name={over[0]!r}` if "
                "they are, and `axis_name=()` if each is on its own."
            )


def over_blocks(spread: Sequence[Sequence[Spread]]) -> list[Across]:
    """What the norms of blocks are measured across, given the arrays of each block."""
    apart = [union(one.apart for one in block) for block in spread]
    return across([[one.blocks for one in block] for block in spread], apart)


def _chosen(mask: Mask, tree: PyTree, name: str) -> list[bool]:
    """Whether each leaf of a tree is in a mask."""
    entries, _ = leaves_with_path(tree)
    if mask is None:
        return [True] * len(entries)
    if callable(mask) and jax.tree_util.all_leaves([mask]):  # a tree may be callable, in Equinox
        given = [mask(keystr(path, simple=True, separator="/")) for path, _ in entries]
    else:
        given = spread_prefix(mask, tree, f"`{name}` has")
    for (path, _), one in zip(entries, given, strict=True):
        if not isinstance(one, bool | np.bool_):
            raise TypeError(
                f"`{name}` is {one!r} for the leaf {keystr(path) or 'itself'}. Give True or False "
                "for every leaf or subtree, or a function of the path, such as "
                '`lambda path: "router" in path`.'
            )
    return [bool(one) for one in given]


def is_axis_name(x: Any) -> bool:
    """Whether `x` says which mapped axes a leaf is spread over, and is no tree of such."""
    names = type(x) is tuple and all(isinstance(name, str) for name in x)
    return x is None or isinstance(x, str | PartitionSpec) or names


def spread_prefix(prefix: PyTree, tree: PyTree, whose: str, is_leaf: Any = None) -> list:
    """The leaf of the prefix that stands above each leaf of the tree.

    Args:
      prefix: the prefix.
      tree: the tree.
      whose: how an error message begins that goes on with "the structure".
      is_leaf: what is a leaf of the prefix.
    """
    if not jax.tree.leaves(tree):
        return []
    try:
        spread = jax.tree.broadcast(prefix, tree, is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            f"{whose} the structure {jax.tree.structure(prefix, is_leaf=is_leaf)}, which is no "
            f"prefix of that of the updates, {jax.tree.structure(tree)}. Give one for all leaves, "
            "or a tree with one for every leaf or subtree."
        ) from error
    return jax.tree.structure(tree).flatten_up_to(spread)


def _names(named: str | Names | PartitionSpec | None) -> Names:
    """All names in what is said of one leaf."""
    if isinstance(named, PartitionSpec):
        return union(map(_names, named))
    return () if named is None else (named,) if isinstance(named, str) else tuple(named)


def _by_dimension(spec: PartitionSpec, kept: Sequence[int], leaf: Leaf) -> tuple[Names, Names]:
    """The names of axes that are not kept, and of those that are."""
    if len(spec) > leaf.array.ndim:
        raise ValueError(
            f"{_the(leaf)} has shape {leaf.array.shape}, and `axis_name` gives it {spec}, which is "
            "of more axes. Give the `PartitionSpec` of the leaf."
        )
    by_axis = list(enumerate(map(_names, spec)))
    blocks = union(names for axis, names in by_axis if axis not in kept)
    return blocks, union(names for axis, names in by_axis if axis in kept)


def _is_mapped(name: str) -> bool:
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def _the(leaf: Leaf) -> str:
    return f"The leaf {keystr(leaf.path) or 'itself'}"


NOTHING_SAID = Scope()
