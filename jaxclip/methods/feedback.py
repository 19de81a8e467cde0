"""Methods that carry the clipped remainder to the next step."""

from typing import Unpack

import optax
from jaxtyping import PyTree

from ..core import NonfiniteOptions
from ..thresholds import LimitLike
from ..wrappers import with_error_feedback
from .named import named_method
from .value import clip_by_value


@named_method()
def u_clip(
    limit: PyTree[LimitLike | None], **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Clips every entry, and adds the clipped remainder to the next gradient.

    $$u_t = \mathrm{clip}(g_t + \Delta_t, -\tau, \tau), \qquad \Delta_{t+1} = g_t + \Delta_t - u_t$$

    Args:
      limit: $\tau$.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state is as large as the parameters.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = u_clip(1.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for gradient in (2.5, 0.0, 0.0):
      ...     update, state = tx.update(jnp.array([gradient]), state)
      ...     print(update[0])
      1.0
      1.0
      0.5

    Source:
      Elesedy, Hutter 2023, arXiv 2302.02971.
    """
    return with_error_feedback(clip_by_value(limit, **options))
