"""Methods whose limit is relative to the parameters."""

import functools
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .. import measures, norms, thresholds
from ..arguments import check_params
from ..core import ClipOptions, NonfiniteOptions, clip
from ..leaves import Factor, as_arrays, is_measured, is_none, scale
from ..scope import Scope
from ..thresholds import Number, check_number
from .named import named_method


@named_method("axes")
def adaptive_grad_clip(
    ratio: float = 0.01,
    eps: float = 1e-3,
    axes: measures.Axes | None = None,
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Scales what feeds each unit down to a share of the norm of the unit's own weights.

    $$u_j = g_j \min\Big(1, \frac{\lambda \max(\|w_j\|, \epsilon)}{\|g_j\|}\Big)$$

    Args:
      ratio: $\lambda$.
      eps: $\epsilon$, so that weights that are zero still learn.
      axes: the axes that are kept, one unit for every index along them, or a function of
        `(path, leaf)`. None is the last axis, where Flax and Haiku have the outputs of dense and
        convolutional kernels, of rank 3 as of any other; scalars and vectors, also those with
        further axes of length 1 such as a kernel `[1, n]`, are one unit, as for the authors. They
        leave the last layer unclipped: `apply_mask=lambda path: "head" not in path`.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its `update` needs `params`.

    Raises:
      ValueError: at the first update, if it was given no `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = adaptive_grad_clip(0.1)
      >>> kernel = jnp.array([[3.0, 30.0], [4.0, 40.0]])
      >>> gradient = jnp.array([[3.0, 3.0], [4.0, 4.0]])
      >>> print(tx.update(gradient, tx.init(kernel), kernel)[0])
      [[0.3 3. ]
       [0.4 4. ]]

    Source:
      Brock, De, Smith, Simonyan 2021, arXiv 2102.06171; `optax.adaptive_grad_clip`, which keeps
      two axes of a kernel of rank 3.
    """
    measure = measures.by_leaf(_units) if axes is None else measures.per_unit(axes)
    return clip(measure, thresholds.relative(ratio, eps=eps), **options)


def _units(updates: optax.Updates, scope: Scope) -> tuple[measures.Norms, measures.FullRange]:
    """Keeps the last axis; none of what is a vector but for axes of length 1, on all devices."""
    shapes = {leaf.path: scope.shape(leaf) for leaf in scope.leaves(updates)}

    def axes(path: Any, x: Array) -> int | tuple[int, ...]:
        return -1 if sum(length != 1 for length in shapes[path]) > 1 else ()

    return measures.per_slice(axes)(updates, scope)


@named_method()
def clippy(
    relative: Number = 0.1, absolute: Number = 1e-7, **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Scales every array's update so that no parameter moves by more than a share of itself.

    $$u'_l = u_l \min\Big(1, \min_i \frac{\lambda\,|w_{l,i}| + \kappa}{|u_{l,i}|}\Big)$$

    Args:
      relative: $\lambda$.
      absolute: $\kappa$. A single weight that is zero holds its whole array back to about it.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation, to be chained after the learning rate; its `update` needs `params`. Its
      metrics are of $\max_i |u_i| / (\lambda |w_i| + \kappa)$, whose limit is 1.

    Raises:
      ValueError: at the first update, if it was given no `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = clippy(0.1, absolute=0.0)
      >>> weights, updates = jnp.array([1.0, 2.0]), jnp.array([-0.2, 0.1])
      >>> print(tx.update(updates, tx.init(weights), weights)[0])
      [-0.1   0.05]

    Source:
      Tang et al. 2023, arXiv 2302.09178; `shrink_by_references` of TensorFlow Recommenders.
    """
    relative, absolute = check_number("relative", relative), check_number("absolute", absolute)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        params = check_params(updates, params, "the updates are bounded by the parameters")
        updates, weights = as_arrays(updates), as_arrays(params)

        def bound(w: Array) -> Array:
            share, least = (jnp.maximum(jnp.asarray(x, w.dtype), 0) for x in (relative, absolute))
            return jnp.where(jnp.isinf(share), jnp.inf, share * jnp.abs(w) + least)

        return clip(_against(bound, weights), 1.0, **options).update(updates, state)

    return optax.GradientTransformationExtraArgs(
        clip(measures.per_leaf(norms.linf), 1.0, **options).init, update
    )


def _against(bound: Callable[[Array], Array], params: optax.Params) -> measures.Scoped:
    """Every leaf is a block, and its norm the largest ratio of an entry to its own bound.

    A ratio beyond every number counts as the largest one, and is measured again in small units.
    """
    per_leaf = measures.per_leaf(norms.linf)

    def ratio(u: Any, w: Any, unit: Callable[[jnp.dtype], Any] = lambda dtype: 1) -> Any:
        if not is_measured(u):
            return u
        [size] = norms.linf([[u]], [tuple(range(u.ndim))])  # 0 of 0 alone
        most = bound(jnp.abs(w.astype(norms.working_dtype(w.dtype))).astype(size.dtype))
        movable = ~(most <= 0)  # nan, of a bound that is no number, included
        quotient = size * unit(size.dtype) / jnp.where(movable, most, 1)
        # A finite entry that must not move at all, or beyond every number: the largest there is.
        endless = jnp.where(size > 0, jnp.finfo(size.dtype).max, 0)
        beyond = ~movable | jnp.isinf(quotient)
        return jnp.where(jnp.isfinite(size) & beyond, endless, quotient)

    def measure(updates: optax.Updates, scope: Scope) -> tuple[measures.Norms, measures.FullRange]:
        ratios, _ = per_leaf(jax.tree.map(ratio, updates, params, is_leaf=is_none), scope)
        _, rescale = per_leaf(updates, scope)

        def rescale_all(factors: measures.Factors) -> optax.Updates:
            in_units = functools.partial(ratio, unit=_smallest)
            far, _ = per_leaf(jax.tree.map(in_units, updates, params, is_leaf=is_none), scope)
            return jax.tree.map(
                _unless_endless, ratios, far, updates, rescale(factors), is_leaf=is_none
            )

        return ratios, measures.FullRange(rescale_all)

    return measures.by_leaf(measure)


def _smallest(dtype: jnp.dtype) -> Any:
    return jnp.finfo(dtype).tiny


def _unless_endless(ratio: Array | None, far: Array | None, update: Any, rescaled: Any) -> Any:
    if ratio is None or far is None:
        return rescaled
    endless = ratio == jnp.finfo(ratio.dtype).max
    unit = _smallest(far.dtype)
    by_far = scale(update, Factor(1 / jnp.where(endless, far, 1), jnp.full_like(far, unit)))
    return jnp.where(endless, by_far, rescaled)
