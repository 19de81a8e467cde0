"""Thresholds that move towards what they track, with a single number for a memory."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import Limit, Norm, Now, Threshold, checked

Number = float | Array


def geometric_quantile(
    quantile: Number = 0.5, *, rate: Number = 0.2, initial: Number = 0.1
) -> Threshold:
    r"""Tracks a quantile of the norms with a single number.

    $$\tau_{t+1} = \tau_t \exp(-\eta\,(\mathbf 1[n_t \le \tau_t] - q)), \qquad \tau_1 = C$$

    Args:
      quantile: $q$, from 0 to 1, the share of the norms that the limit is to lie above.
      rate: $\eta$. The limit moves by $e^{\eta q}$ or $e^{-\eta (1 - q)}$ at every step.
      initial: $C > 0$.

    Example:
      >>> import jaxclip
      >>> limit = jaxclip.thresholds.geometric_quantile(0.9, initial=1.0)
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), limit)

    Source:
      Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv 1905.03871.
    """
    share = checked("quantile", quantile, at_most=1)
    rate, initial = checked("rate", rate), checked("initial", initial)

    def init(norm: Norm) -> Float[Array, ""]:
        return jnp.asarray(initial, norm.dtype) + norm

    def update(norm: Norm, state: Float[Array, ""], now: Now) -> tuple[Limit, Float[Array, ""]]:
        within = (norm <= state).astype(norm.dtype)
        return state, state * jnp.exp(-rate * (within - share))

    return Threshold(init, update)
