"""Methods whose limit is relative to the parameters."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .. import measures, norms, thresholds
from ..core import ClipOptions, NonfiniteOptions, clip
from ..leaves import is_measured
from ..thresholds import checked
from .named import method

Number = float | Array


@method("axes")
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
        convolutional kernels, of rank 3 as of any other; vectors and scalars are one unit. The
        authors leave the last layer unclipped: wrap with `optax.masked`.
      **options: `shrink`, `nonfinite` and `name`, as in `clip`.

    Returns:
      The transformation; its `update` needs `params`.

    Raises:
      ValueError: at the first update, if it was given no `params`.

    Example:
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
    return clip(measures.per_unit(axes), thresholds.relative(ratio, eps=eps), **options)


@method()
def clippy(
    relative: Number = 0.1, absolute: Number = 1e-7, **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Scales every array's update so that no parameter moves by more than a share of itself.

    $$u'_l = u_l \min\Big(1, \min_i \frac{\lambda\,|w_{l,i}| + \kappa}{|u_{l,i}|}\Big)$$

    Args:
      relative: $\lambda$.
      absolute: $\kappa$. A single weight that is zero holds its whole array back to about it.
      **options: `nonfinite` and `name`, as in `clip`.

    Returns:
      The transformation, to be chained after the learning rate; its `update` needs `params`. Its
      metrics are of $\max_i |u_i| / (\lambda |w_i| + \kappa)$, whose limit is 1.

    Raises:
      ValueError: at the first update, if it was given no `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clippy(0.1, absolute=0.0)
      >>> weights, updates = jnp.array([1.0, 2.0]), jnp.array([-0.2, 0.1])
      >>> print(tx.update(updates, tx.init(weights), weights)[0])
      [-0.1   0.05]

    Source:
      Tang et al. 2023, arXiv 2302.09178; `shrink_by_references` of TensorFlow Recommenders.
    """
    relative, absolute = checked("relative", relative), checked("absolute", absolute)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(
                "`params` is missing, but the updates are bounded by the parameters. Call "
                "`update(updates, state, params)`."
            )
        measure = _against(lambda w: relative * jnp.abs(w) + absolute, params)
        return clip(measure, 1.0, **options).update(updates, state)

    return optax.GradientTransformationExtraArgs(
        clip(measures.per_leaf(norms.linf), 1.0, **options).init, update
    )


def _against(bound: Callable[[Array], Array], params: optax.Params) -> measures.Measure:
    """Every leaf is a block, and its norm the largest ratio of an entry to its own bound."""

    def ratio(u: Any, w: Any) -> Any:
        if not is_measured(u):
            return u
        size = jnp.abs(u.astype(norms.working_dtype(u.dtype)))
        most = bound(w.astype(size.dtype))
        # What must not move at all is as far beyond its bound as a number can be.
        infinitely = jnp.where(size > 0, jnp.finfo(size.dtype).max, 0)
        return jnp.where(most > 0, size / jnp.where(most > 0, most, 1), infinitely)

    def measure(updates: optax.Updates) -> tuple[measures.Norms, Callable]:
        ratios = jax.tree.map(ratio, updates, params, is_leaf=lambda x: x is None)
        _, rescale = measures.per_leaf(norms.linf)(updates)
        return measures.per_leaf(norms.linf)(ratios)[0], rescale

    return measure
