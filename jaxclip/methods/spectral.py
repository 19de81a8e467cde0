"""Clipping of singular values, by decomposition or by matrix products alone."""

from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .. import shrinks
from ..core import (
    ClipOptions,
    ClipState,
    Nonfinite,
    as_thresholds,
    clip,
    given_limits,
    is_threshold,
)
from ..leaves import measured, replaced
from ..measures import singular_values
from ..metrics import observed, pooled
from ..norms import l2
from ..shrinks import Shrink
from ..singular import like, matrix
from ..thresholds import Limitable, choice
from .named import method

Matrix = Float[Array, "rows columns"]


@method("method")
def clip_singular_values(
    limit: PyTree[Limitable | None],
    *,
    method: Literal["svd", "newton_schulz"] = "svd",
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
        $10^{-6}$ of the largest singular value, so it is for gradients that are not many orders of
        magnitude beyond the limit.
      **options: `shrink`, `nonfinite` and `name`, as in `clip`.

    Returns:
      The transformation. Its metrics are of the singular values.

    Raises:
      ValueError: the method is neither, or does not have the shrink.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_singular_values(1.0)
      >>> gradient = jnp.diag(jnp.array([0.5, 3.0]))
      >>> print(jnp.abs(tx.update(gradient, tx.init(gradient))[0]).round(3))
      [[0.5 0. ]
       [0.  1. ]]

    Source:
      Jiang, Semenov, Stich 2026 (SPECTRA), arXiv 2603.14315; Cesista 2025.
    """
    choice("method", method, "svd", "newton_schulz")
    if method == "svd":
        return clip(singular_values(), limit, **options)
    return _by_products(limit, **options)


def _by_products(
    limit: PyTree[Limitable | None],
    shrink: Shrink = shrinks.hard,
    nonfinite: Nonfinite = "propagate",
    name: str = "clip",
) -> optax.GradientTransformationExtraArgs:
    clipped_matrix = {shrinks.hard: _hard, shrinks.inverse_sqrt: _inverse_sqrt}.get(shrink)
    if clipped_matrix is None:
        raise ValueError(
            f"`shrink` is {shrink}, which has no form in matrix products alone. Give "
            '`shrinks.hard` or `shrinks.inverse_sqrt`, or the method "svd".'
        )
    if any(map(is_threshold, jax.tree.leaves(limit, is_leaf=is_threshold))):
        raise ValueError(
            "`limit` is a threshold, which wants to see singular values, and `newton_schulz` knows "
            'none. Give a number, an array or a schedule, or the method "svd".'
        )
    thresholds = as_thresholds(limit)
    bad = 0 if nonfinite == "zero" else jnp.nan

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipState]:
        arrays, structure = jax.tree.flatten(measured(updates))
        before = state.metrics[name]
        limits = given_limits(
            thresholds, structure.unflatten(arrays), state.step, before.norm.dtype
        )
        clipped, beyond = [], []
        for x, limit in zip(arrays, limits, strict=True):
            out, count = clipped_matrix(matrix(x), limit)
            out = jnp.where(count > 0, like(out, x), x)
            clipped.append(jnp.where(jnp.all(jnp.isfinite(x)), out, jnp.array(bad, x.dtype)))
            beyond.append(count)
        # Of singular values the sum of squares is that of the entries.
        number = max(1, sum(min(matrix(x).shape) for x in arrays))
        sizes = [size / number**0.5 for size in l2([arrays, clipped], [(), ()])]
        step = state.step + 1
        share = sum(beyond, jnp.zeros(())) / number
        seen = observed(before, [*sizes, *pooled(limits)], share, step)
        return replaced(updates, structure.unflatten(clipped)), ClipState(
            step, state.thresholds, {name: seen}
        )

    init = clip(singular_values(), limit, shrink, nonfinite=nonfinite, name=name).init
    return optax.GradientTransformationExtraArgs(init, update)


def _hard(x: Matrix, limit: Array) -> tuple[Matrix, Array]:
    r"""$\min(\sigma, \tau)$, and how many $\sigma$ are beyond $\tau$."""
    if x.shape[0] > x.shape[1]:
        clipped, count = _hard(x.T, limit)
        return clipped.T, count
    limit = limit.astype(x.dtype)
    polar = _sign(x)
    identity = jnp.eye(x.shape[0], dtype=x.dtype)
    # The projector onto the directions beyond the limit; where it is not sure, both sides agree.
    beyond = (identity + _sign(_product(x, polar.T) - limit * identity)) / 2
    within = identity - beyond
    kept = _product(within, _product(within, x))
    return kept + limit * (polar - _product(within, _product(within, polar))), jnp.trace(beyond)


def _inverse_sqrt(x: Matrix, limit: Array) -> tuple[Matrix, Array]:
    r"""$(I + X X^\top / \tau^2)^{-1/2} X$, and how many $\sigma$ there are."""
    if x.shape[0] > x.shape[1]:
        clipped, count = _inverse_sqrt(x.T, limit)
        return clipped.T, count
    scaled = x / jnp.where(limit > 0, limit, 1).astype(x.dtype)
    identity = jnp.eye(x.shape[0], dtype=x.dtype)
    gram = identity + _product(scaled, scaled.T)
    bound = jnp.linalg.norm(gram)
    root, inverse = gram / bound, identity
    for _ in range(20):
        step = (3 * identity - _product(inverse, root)) / 2
        root, inverse = _product(root, step), _product(step, inverse)
    clipped = _product(inverse, x) / jnp.sqrt(bound)
    count = jnp.where(jnp.any(x != 0), jnp.array(float(x.shape[0])), 0)
    return jnp.where(limit > 0, clipped, 0), count


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


def _sign(x: Matrix) -> Matrix:
    r"""$U V^\top$ of $X = U \Sigma V^\top$; of a symmetric matrix the sign of its eigenvalues."""
    size = jnp.linalg.norm(x)
    y = x / jnp.where(size > 0, 1.01 * size, 1)
    for a, b, c in _QUINTICS:
        gram = _product(y, y.T)
        y = a * y + _product(b * gram + c * _product(gram, gram), y)
    return y


def _product(a: Matrix, b: Matrix) -> Matrix:
    return jnp.matmul(a, b, precision="highest")
