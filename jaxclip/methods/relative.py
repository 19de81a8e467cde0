"""Methods whose limit is relative to the parameters."""

from typing import Unpack

import optax

from .. import measures, thresholds
from ..core import ClipOptions, clip
from .named import method


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
