"""Clipping of singular values, by decomposition or by matrix products alone."""

import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Inexact, PyTree

from .. import measures, shrinks
from ..bits import largest_exponent, times_power_of_two
from ..clip_metrics import Seen, rms_by_array, total
from ..core import (
    ClipOptions,
    ClipState,
    NonfiniteOptions,
    check_update,
    clip,
    next_state,
    scope_of,
)
from ..devices import across, devices
from ..leaves import measurable, places, replace_measured
from ..shrinks import Shrink
from ..singular import (
    everywhere,
    in_parts,
    like,
    matrix,
    matrix_shape,
    over_matrices,
    with_whole_columns,
)
from ..thresholds import LimitLike, check_choice
from ..thresholds.tree import is_threshold, limit_tree
from .named import named_method
from .value import by_name, mean_limit

Matrix = Inexact[Array, "rows columns"]


class MatrixShrink(NamedTuple):
    r"""A shrink in matrix products.

    Attributes:
      directions: from the sine and the cosine, the clipped matrix in units of the limit, and how
        many singular values were shrunk.
      unseen: of a dtype, the share of the limit up to which nothing is shrunk, or nothing that the
        dtype can tell.
    """

    directions: Callable[[Matrix, Matrix], tuple[Matrix, Array]]
    unseen: Callable[[jnp.dtype], float]


@named_method("method", "axes")
def clip_singular_values(
    limit: PyTree[LimitLike | None],
    *,
    method: Literal["svd", "newton_schulz"] = "svd",
    axes: measures.Axes = (),
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the singular values of every matrix of the gradient, and leaves its directions alone.

    $$U \,\mathrm{diag}(\min(\sigma_i, \tau))\, V^\top, \qquad
    G = U \,\mathrm{diag}(\sigma)\, V^\top$$

    With `shrink=shrinks.inverse_sqrt` they become $\sigma_i / \sqrt{1 + \sigma_i^2/\tau^2}$.

    Args:
      limit: $\tau$. Kernels of more than two axes count as the matrix of the last axis against all
        others, vectors as a matrix of one row.
      method: `"svd"` is exact and takes any shrink. `"newton_schulz"` takes matrix products alone,
        which accelerators are made for, and of shrinks `hard` and `inverse_sqrt`; its error is some
        $10^{-6}$ of the largest singular value, but none is left beyond the limit by more than
        rounding, however large they were. Of a matrix that is spread over devices `"svd"` gathers
        all on each of them, `"newton_schulz"` nothing if it is spread over its longer axis (of a
        square matrix, the first), nor on explicit axes over one axis; otherwise it gathers the
        shorter axis once under `jax.set_mesh`, and without a mesh in context at every product.
      axes: the axes along which an array is a stack of matrices, such as `0` where `scan` stacked
        the layers, or a function of `(path, leaf)`.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation. Its metrics are of the singular values.

    Raises:
      ValueError: the method is neither, or does not have the shrink.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = clip_singular_values(1.0)
      >>> gradient = jnp.diag(jnp.array([0.5, 3.0]))
      >>> print(jnp.abs(tx.update(gradient, tx.init(gradient))[0]).round(3))
      [[0.5 0. ]
       [0.  1. ]]

    Source:
      Jiang, Semenov, Stich 2026 (SPECTRA), arXiv 2603.14315; Cesista 2025.
    """
    check_choice("method", method, "svd", "newton_schulz")
    if method == "svd":
        return clip(measures.singular_values(axes), limit, **options)
    return _by_products(limit, axes, **options)


def _by_products(
    limit: PyTree[LimitLike | None],
    axes: measures.Axes,
    shrink: Shrink = shrinks.hard,
    **options: Unpack[NonfiniteOptions],
) -> optax.GradientTransformationExtraArgs:
    if shrink not in _MATRIX_SHRINKS:
        raise ValueError(
            f"`shrink` is {shrink}, which has no form in matrix products alone. Give "
            '`shrinks.hard` or `shrinks.inverse_sqrt`, or the method "svd".'
        )
    if any(map(is_threshold, jax.tree.leaves(limit, is_leaf=is_threshold))):
        raise ValueError(
            "`limit` is a threshold, which wants to see singular values, and `newton_schulz` knows "
            'none. Give a number, an array or a schedule, or the method "svd".'
        )
    thresholds, scope = limit_tree(limit), scope_of(options)
    name = options.get("name", "clip")
    bad = 0 if options.get("nonfinite") == "zero" else jnp.nan

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipState]:
        own = scope.own(updates)
        structure = jax.tree.structure(measurable(own))
        leaves = scope.leaves(own)
        kept = [measures.kept_axes(axes, leaf) for leaf in leaves]
        apart = [scope.undivided(*one) for one in zip(leaves, kept, strict=True)]
        arrays = [leaf.array for leaf in leaves]
        before = check_update(updates, state, params, name)
        limits = thresholds.given(structure.unflatten(arrays), state.step, before.norm.dtype)
        clip_one = partial(_clipped_array, _MATRIX_SHRINKS[shrink], bad)
        clipped, beyond = [], []
        for x, limit, k in zip(arrays, limits, kept, strict=True):
            of_stack = over_matrices(partial(clip_one, limit=limit), k, [True], (True, False))
            out, count = of_stack(x)
            clipped.append(out)
            beyond.append(jnp.sum(count.astype(before.norm.dtype)))
        shares = [devices(names) for names in apart]
        numbers = [_count(x, k) * n for x, k, n in zip(arrays, kept, shares, strict=True)]
        # Of singular values the sum of squares is that of the entries.
        entries = [x.size * n for x, n in zip(arrays, shares, strict=True)]
        change = math.sqrt(max(1, sum(entries)) / max(1, sum(numbers)))
        over = across([apart, apart])
        (norm, leaves), (clipped_norm, _) = rms_by_array([arrays, clipped], [(), ()], over)
        ratios = [math.sqrt(max(1, n) / max(1, k)) for n, k in zip(entries, numbers, strict=True)]
        leaves = leaves * jnp.array(ratios, leaves.dtype)
        seen = Seen(
            norm * change,
            clipped_norm * change,
            mean_limit(limits, numbers, before.norm.dtype),
            (total(beyond, over[0]) / max(1, sum(numbers))).astype(before.norm.dtype),
            leaves,
            places(own),
            *by_name(structure, leaves, limits, options.get("detail", "summary")),
        )
        return replace_measured(updates, structure.unflatten(clipped)), next_state(
            state, name, state.thresholds, seen
        )

    init = clip(measures.singular_values(axes), limit, shrink, **options).init
    return optax.GradientTransformationExtraArgs(init, update)


def _clipped_array(
    shrink: MatrixShrink, bad: float, x: Inexact[Array, "..."], limit: Array
) -> tuple[Inexact[Array, "..."], Array]:
    """The clipped matrix in the form of an array, and how many singular values were shrunk."""

    def clipped(x: Array, limit: Array) -> tuple[Array, Array]:
        of = matrix(x)
        out, count = _clipped(shrink, of, limit.astype(of.real.dtype))
        return like(out, x), count

    out, count = in_parts(clipped, x, limit)
    defined = jnp.all(jnp.isfinite(x)) & ~jnp.isnan(limit)
    out = jnp.where(defined, jnp.where(count > 0, out, x), jnp.array(bad, x.dtype))
    return out, jnp.where(defined, count, 0)


def _count(x: Array, kept: tuple[int, ...]) -> int:
    """The number of singular values of a stack of matrices."""
    each = [length for axis, length in enumerate(x.shape) if axis not in kept]
    number = math.prod(x.shape[axis] for axis in kept)
    return number * min(matrix_shape(each))


def _clipped(shrink: MatrixShrink, x: Matrix, limit: Array) -> tuple[Matrix, Array]:
    r"""The clipped matrix, and how many singular values were shrunk: of none it is not to be used.

    All is computed of $2^{-e} X$, whose entries are below 1, and of the directions of the result,
    which the limit has yet to multiply; so nothing is out of range, or lost to what is.
    """
    if x.shape[0] >= x.shape[1]:  # square ones too: devices share rows more often than columns
        clipped, count = _clipped_wide(shrink, x.conj().T, limit)
        return clipped.conj().T, count
    return _clipped_wide(shrink, x, limit)


def _clipped_wide(shrink: MatrixShrink, x: Matrix, limit: Array) -> tuple[Matrix, Array]:
    x = with_whole_columns(x)
    e = largest_exponent(x)
    x, level = times_power_of_two(x, -e), times_power_of_two(limit, -e)
    size = lax.stop_gradient(jnp.linalg.norm(x))
    within = size <= level * shrink.unseen(x.dtype)
    # What is not used must have a derivative all the same.
    level, limit = jnp.where(within, size, level), jnp.where(within, 1, limit)
    directions, count = shrink.directions(*_sine_and_cosine(x, level))
    directions = with_whole_columns(directions)
    of_limit = largest_exponent(limit)
    clipped = directions * times_power_of_two(limit, -of_limit).astype(x.dtype)
    return times_power_of_two(clipped, of_limit), jnp.where(within, 0, count)


def _sine_and_cosine(x: Matrix, limit: Array) -> tuple[Matrix, Matrix]:
    r"""$U \sin\theta\,V^\top$ and $U \cos\theta\,U^\top$, where $\tan\theta_i = \sigma_i / \tau$.

    The two are the polar factor of $[X, \tau I] = U\,[\sigma V^\top, \tau U^\top]$. Both are
    bounded by 1, however far $\sigma$ is beyond $\tau$.
    """
    sine, cosine = _polar(x, limit.astype(x.dtype) * jnp.eye(len(x), dtype=x.dtype))
    return sine, cosine


def _hard(sine: Matrix, cosine: Matrix) -> tuple[Matrix, Array]:
    r"""$\min(\tan\theta, 1) = \sin\theta / \max(\sin\theta, \cos\theta)$, with no angle looked at.

    $$\max(\sin\theta, \cos\theta)^2 = \tfrac12 (1 + |\cos 2\theta|)$$
    """
    double = _product(cosine, cosine.conj().T) - _product(sine, sine.conj().T)
    double = (double + double.conj().T) / 2
    [sign], identity = _polar(double), jnp.eye(len(double), dtype=double.dtype)
    largest = (identity + _product(double, sign)) / 2
    # Roots by products (Denman, Beavers, Schulz); eigenvalues from 1/2 to 1 take five of them.
    root, inverse = largest, identity
    for _ in range(6):
        step = (3 * identity - _product(inverse, root)) / 2
        root, inverse = _product(root, step), _product(step, inverse)
    beyond = (len(double) - jnp.trace(sign).real) / 2
    return _product(inverse, sine), jnp.round(beyond)


def _inverse_sqrt(sine: Matrix, cosine: Matrix) -> tuple[Matrix, Array]:
    r"""$\sin\theta$, of all singular values."""
    return sine, jnp.array(len(sine), sine.real.dtype)


_MATRIX_SHRINKS = {
    shrinks.hard: MatrixShrink(_hard, lambda dtype: 1.0),
    shrinks.inverse_sqrt: MatrixShrink(
        _inverse_sqrt, lambda dtype: math.sqrt(jnp.finfo(dtype).eps) / 2
    ),
}


# The composition of these quintics takes every singular value from 1e-7 to 1 to one, the first ones
# as fast as can be (Amsel, Persson, Musco, Gower 2025, arXiv 2505.16932), the last one with
# derivatives that vanish there.
_QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    *[(1.875, -1.25, 0.375)] * 12,
)


def _polar(*parts: Matrix) -> list[Matrix]:
    r"""$U V^\top$ of $X = U \Sigma V^\top$; of a symmetric matrix the sign of its eigenvalues.

    $X$ is given, and returned, in parts that lie side by side: one array of them could be made of
    parts that are spread over devices only by moving entries between these.
    """
    # The outcome does not depend on the size.
    size = lax.stop_gradient(jnp.sqrt(sum(jnp.linalg.norm(x) ** 2 for x in parts)))
    ys = [x / jnp.where(size > 0, 1.01 * size, 1).astype(x.dtype) for x in parts]
    for a, b, c in _QUINTICS:
        gram = everywhere(reduce(operator.add, [_product(y, y.conj().T) for y in ys]))
        step = b * gram + c * _product(gram, gram)
        ys = [a * y + _product(step, y) for y in ys]
    return ys


def _product(a: Matrix, b: Matrix) -> Matrix:
    return jnp.matmul(a, b, precision="highest")
