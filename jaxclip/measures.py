r"""Measures: which blocks a gradient has, how large they are, and the way back.

A measure has the form of `jax.vjp`, *(value, way back)*:

    norms, rescale = measure(updates)
    updates = rescale(factors)

where `norms` and `factors` are trees of one structure, an array of blocks at each leaf. A measure
of your own is any function of this form. Those here measure floating and complex leaves; integers,
`float0`, keys and `None` pass through and are not counted.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from . import norms
from .bits import at_least_normal
from .devices import Names
from .leaves import Factor, Path, as_factor, is_measured, measurable, replace_measured, scale
from .scope import NOTHING_SAID, Leaf, Scope, over_blocks, spread_prefix
from .singular import decompose, matrix, over_matrices, recompose

Norms = PyTree[Float[Array, "..."]]
Factors = PyTree[Factor | Float[Array, "..."]]
Rescale = Callable[[Factors], optax.Updates]
Measure = Callable[[optax.Updates], tuple[Norms, Rescale]]
Axes = int | tuple[int, ...] | Callable[[Path, Array], int | tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class FullRange:
    """A way back that takes a `Factor` for every array of blocks, and not only an array.

    So have all measures of this module. Others get the product of the two numbers of a factor,
    which is 0 where the norm is some 1e38 times the limit.

    Attributes:
      rescale: from the factors to the updates.
      apart: of each array of norms, the mapped axes along which every device has blocks of its own;
        by default none.
      leaves: where the whole tree is one block, the norms of its leaves, a vector; empty if they
        are not known.
      measured: the tree of these leaves, with None for all others.
      named: whether every block has a name, by which metrics show its norm and limit.
      fine: whether blocks are as many as entries, so that metrics show one number a leaf.
    """

    rescale: Rescale
    apart: Sequence[Names] = ()
    leaves: Float[Array, " leaves"] | None = None
    measured: Any = None
    named: bool = False
    fine: bool = False

    def __call__(self, factors: Factors) -> optax.Updates:
        """Multiplies the blocks."""
        return self.rescale(factors)


@dataclasses.dataclass(frozen=True, eq=False)
class Scoped:
    """A measure that takes the scope of a clip beside the leaves.

    So are all measures of this module, to which `clip` hands its own options.

    Attributes:
      measure: a function `(updates, scope) -> (norms, rescale)`.
    """

    measure: Callable[[optax.Updates, Scope], tuple[Norms, "FullRange"]]

    def __call__(
        self, updates: optax.Updates, scope: Scope = NOTHING_SAID
    ) -> tuple[Norms, FullRange]:
        """Measures the updates."""
        return self.measure(updates, scope)


def by_leaf(measure: Callable[[optax.Updates, Scope], tuple[Norms, FullRange]]) -> Scoped:
    """A measure whose blocks lie within leaves, so that a leaf is measured and scaled, or neither.

    Args:
      measure: a function `(updates, scope) -> (norms, rescale)`, which gets None for what is not.
    """

    def measure_own(updates: optax.Updates, scope: Scope) -> tuple[Norms, FullRange]:
        norms, rescale = measure(scope.own(updates), scope)

        def rescale_own(factors: Factors) -> optax.Updates:
            return replace_measured(updates, rescale(factors))

        return norms, dataclasses.replace(rescale, rescale=rescale_own)

    return Scoped(measure_own)


def within(measure: Measure, scope: Scope) -> Measure:
    """The measure with a scope."""
    if isinstance(measure, Scoped):
        return functools.partial(measure, scope=scope)
    options = {name: getattr(scope, name) for name in ("axis_name", "measure_mask", "apply_mask")}
    said = [name for name, option in options.items() if option is not None]
    if said:
        raise TypeError(
            f"`{said[0]}` is {options[said[0]]!r}, but the measure is a function of your "
            "own, which cannot be told. Make it `measures.Scoped(f)` with `f(updates, scope)`, and "
            "hand the scope on to the measures that it is made of."
        )
    return measure


def apply_factors(rescale: Rescale, factors: PyTree[Factor]) -> optax.Updates:
    """Multiplies every block by its factor, by the way back of any measure."""
    if not isinstance(rescale, FullRange):
        factors = jax.tree.map(lambda factor: factor.times(jnp.ones_like(factor.first)), factors)
    return rescale(factors)


def whole(norm: norms.Norm = norms.l2) -> Scoped:
    r"""The whole tree is one block.

    $$n = \|(g_1, \dots, g_L)\|$$

    Args:
      norm: how a block is measured.

    Returns:
      A measure whose norms are one scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> norm, rescale = whole()({"w": jnp.array([3.0]), "b": jnp.array([4.0])})
      >>> print(norm, rescale(jnp.array(0.1)))
      5.0 {'b': Array([0.4], dtype=float32), 'w': Array([0.3], dtype=float32)}
    """

    def measure(updates: optax.Updates, scope: Scope) -> tuple[Norms, FullRange]:
        scope = scope.or_else(norm.axis_name)
        number = len(jax.tree.leaves(updates))

        def rescale(factor: Factors) -> optax.Updates:
            return scope.scaled(updates, [factor] * number)

        unknown = jnp.zeros(0)
        if scope.grad_norm is not None and not scope.by_leaf:
            return scope.grad_norm, FullRange(rescale, leaves=unknown)
        leaves = scope.leaves(updates)
        [value] = dataclasses.replace(norm, by_array=scope.by_leaf)(
            [[leaf.array for leaf in leaves]],
            [()],
            over_blocks([[scope.spread(leaf) for leaf in leaves]]),
        )
        value, alone = value if scope.by_leaf else (value, unknown)
        given = value if scope.grad_norm is None else scope.grad_norm
        return given, FullRange(rescale, leaves=alone, measured=scope.measured(updates))

    return Scoped(measure)


def per_group(
    labels: PyTree[Hashable] | Callable,
    norm: norms.Norm = norms.l2,
    *,
    groups: Iterable[Hashable] = (),
) -> Scoped:
    r"""The leaves with one label are one block.

    $$n_k = \|(g_l : \mathrm{label}(l) = k)\|$$

    Args:
      labels: as in `optax.partition`, a tree of labels that is a prefix of the updates, or a
        function from the updates to one.
      norm: how a block is measured.
      groups: the groups of a tree without leaves, as Optax makes one to find the parameters in a
        state.

    Returns:
      A measure whose norms are a dict from label to scalar.

    Raises:
      ValueError: at `init`, if the labels are no prefix of the parameters.

    Examples:
      >>> import jax.numpy as jnp
      >>> gradient = {"head": jnp.array([2.0]), "body": [jnp.array([3.0]), jnp.array([4.0])]}
      >>> values, rescale = per_group({"head": "last layer", "body": "others"})(gradient)
      >>> print(values["others"])
      5.0
    """

    def measure(updates: optax.Updates, scope: Scope) -> tuple[Norms, FullRange]:
        scope = scope.or_else(norm.axis_name)
        tree = labels(updates) if callable(labels) else labels
        label_of = spread_prefix(tree, updates, "The labels have")
        known = (jax.tree.leaves(tree) if label_of else ()) or groups
        members: dict[Any, list[Leaf]] = {k: [] for k in known}
        for leaf in scope.leaves(updates):
            members[label_of[leaf.index]].append(leaf)
        values = norm(
            [[leaf.array for leaf in block] for block in members.values()],
            [()] * len(members),
            over_blocks([[scope.spread(leaf) for leaf in block] for block in members.values()]),
        )

        def rescale(factors: Factors) -> optax.Updates:
            return scope.scaled(updates, [factors[label] for label in label_of])

        return dict(zip(members, values, strict=True)), FullRange(rescale, named=True)

    return Scoped(measure)


def per_slice(axes: Axes, norm: norms.Norm = norms.l2) -> Scoped:
    r"""Every leaf has one block for every index along the axes that are kept.

    $$n_i = \|g_{i, :}\|$$

    Most scopes are a case of this one: no axis kept is a block a leaf, all kept a block an entry.

    Args:
      axes: the axes that are kept, such as `-1` for the outputs of a Flax kernel `[in, out]`, or
        `(0, -1)` for those of a scanned kernel `[layer, in, out]`; or a function of `(path, leaf)`
        that returns them. A scalar is one block whatever the axes.
      norm: how a block is measured.

    Returns:
      A measure whose norms have the structure of the updates, with the kept axes of each leaf.

    Raises:
      ValueError: at `init`, if a leaf does not have an axis; it names the leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])
      >>> values, rescale = per_slice(-1)({"kernel": kernel})
      >>> print(values["kernel"])
      [5. 1.]
    """
    return _per_slice(axes, norm)


def per_leaf(norm: norms.Norm = norms.l2) -> Scoped:
    r"""Every leaf is a block.

    $$n_l = \|g_l\|$$

    Args:
      norm: how a block is measured.

    Returns:
      A measure whose norms have the structure of the updates, a scalar for each leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> values, rescale = per_leaf()({"w": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])})
      >>> print(values)
      {'b': Array(1., dtype=float32), 'w': Array(5., dtype=float32)}
    """
    return _per_slice((), norm)


def per_entry() -> Scoped:
    r"""Every entry is a block.

    $$n_i = |g_i|$$

    Returns:
      A measure whose norms have the structure and shapes of the updates.

    Examples:
      >>> import jax.numpy as jnp
      >>> values, rescale = per_entry()(jnp.array([3.0, -4.0]))
      >>> print(values)
      [3. 4.]
    """
    return _per_slice(lambda path, x: tuple(range(x.ndim)), norms.linf, alone=True)


def per_unit(axes: Axes | None = None, norm: norms.Norm = norms.l2) -> Scoped:
    r"""Every unit of a layer is a block: what feeds one output.

    $$n_j = \|g_{:, j}\|$$

    Args:
      axes: the axes that are kept, as in `per_slice`. None is the last axis, where Flax and Haiku
        have the outputs of dense and convolutional kernels of every rank; vectors and scalars are
        one unit then. An `[out, in]` kernel wants `0`, one that `scan` stacked wants `(0, -1)`.
      norm: how a block is measured.

    Returns:
      A measure whose norms have the structure of the updates, with the kept axes of each leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> values, rescale = per_unit()({"kernel": jnp.ones((9, 2)), "bias": jnp.ones(4)})
      >>> print(values)
      {'bias': Array(2., dtype=float32), 'kernel': Array([3., 3.], dtype=float32)}
    """
    if axes is None:
        return _per_slice(lambda path, x: -1 if x.ndim > 1 else (), norm)
    return per_slice(axes, norm)


def singular_values(axes: Axes = ()) -> Scoped:
    r"""Every singular direction of every matrix is a block.

    $$G = U \,\mathrm{diag}(n_1, \dots, n_k)\, V^\top$$

    A kernel of more than two axes counts as the matrix of its last axis against all others; a
    vector as a matrix of one row, whose singular value is its norm.

    Args:
      axes: the axes along which a leaf is a stack of matrices, as in `per_slice`, such as `0` where
        `scan` stacked the layers.

    Returns:
      A measure whose norms have the structure of the updates, with the kept axes of each leaf, and
      its singular values along a last one.

    Examples:
      >>> import jax.numpy as jnp
      >>> values, rescale = singular_values()(jnp.diag(jnp.array([1.0, 3.0])))
      >>> print(values)
      [3. 1.]
    """

    def measure(updates: optax.Updates, scope: Scope) -> tuple[Norms, FullRange]:
        treedef = jax.tree.structure(measurable(updates))
        leaves = scope.leaves(updates)
        kept = [kept_axes(axes, leaf) for leaf in leaves]
        apart = [scope.undivided(*one) for one in zip(leaves, kept, strict=True)]
        parts = [
            over_matrices(lambda x: decompose(matrix(x)), k, [True], False)(leaf.array)
            for leaf, k in zip(leaves, kept, strict=True)
        ]

        def rescale(factors: Factors) -> optax.Updates:
            all_factors = map(as_factor, treedef.flatten_up_to(factors))
            new = [
                over_matrices(recompose, k, [False, False, True], True)(
                    (left, factor.second * values, right), factor.first, leaf.array
                )
                for (left, values, right), factor, leaf, k in zip(
                    parts, all_factors, leaves, kept, strict=True
                )
            ]
            return treedef.unflatten(new)

        values = [at_least_normal(values) for _, values, _ in parts]
        return treedef.unflatten(values), FullRange(rescale, apart, fine=True)

    return by_leaf(measure)


def _per_slice(axes: Axes, norm: norms.Norm, *, alone: bool = False) -> Scoped:
    def measure(updates: optax.Updates, scope: Scope) -> tuple[Norms, FullRange]:
        scope = scope.or_else(norm.axis_name)
        treedef = jax.tree.structure(measurable(updates))
        leaves = scope.leaves(updates)
        kept = [kept_axes(axes, leaf) for leaf in leaves]
        spread = [scope.spread(leaf, k, alone=alone) for leaf, k in zip(leaves, kept, strict=True)]
        values = norm([[leaf.array] for leaf in leaves], kept, over_blocks([[s] for s in spread]))

        def rescale(factors: Factors) -> optax.Updates:
            by_leaf = iter(zip(treedef.flatten_up_to(factors), kept, strict=True))

            def rescaled(x: Any) -> Any:
                if not is_measured(x):
                    return x
                factor, keep = next(by_leaf)
                ndim = jnp.ndim(x)
                return scale(x, as_factor(factor).map(lambda f: norms.expand(f, keep, ndim)))

            return jax.tree.map(rescaled, updates)

        return treedef.unflatten(values), FullRange(
            rescale, [one.apart for one in spread], fine=alone
        )

    return by_leaf(measure)


def kept_axes(axes: Axes, leaf: Leaf) -> tuple[int, ...]:
    """The axes of a leaf that are kept, none of them negative, in order.

    Raises:
      TypeError: they are no integers.
      ValueError: the leaf does not have one of them.
    """
    path, x = leaf.path, leaf.array
    axes = axes(path, x) if callable(axes) else axes
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if not all(isinstance(axis, int) for axis in axes):
        raise TypeError(f"`axes` is {axes!r}. Give an integer, or a tuple of them.")
    if x.ndim == 0:
        return ()
    missing = [axis for axis in axes if not -x.ndim <= axis < x.ndim]
    if missing:
        raise ValueError(
            f"The leaf {jax.tree_util.keystr(path) or 'itself'} has shape {x.shape}, and so no "
            f"axis {missing[0]} to keep. Give `axes` as a function of (path, leaf), which can tell "
            "the leaves apart."
        )
    return tuple(sorted({axis % x.ndim for axis in axes}))
