"""Thresholds that move towards a statistic of the norms, with one number for a memory."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import Limit, Norm, Now, Number, Threshold, check_number, check_quantile, numbers


def geometric_quantile(
    quantile: Number = 0.5, *, rate: Number = 0.2, initial: Number = 0.1
) -> Threshold:
    r"""Tracks a quantile of the norms with a single number.

    $$\tau_{t+1} = \tau_t \exp(-\eta\,(\mathbf 1[n_t \le \tau_t] - q)), \qquad \tau_1 = C$$

    Args:
      quantile: $q$, from 0 to 1, the share of the norms that the limit is to lie above.
      rate: $\eta$. The limit moves by $e^{\eta q}$ or $e^{-\eta (1 - q)}$ at every step.
      initial: $C > 0$.

    Examples:
      >>> import jaxclip
      >>> limit = jaxclip.thresholds.geometric_quantile(0.9, initial=1.0)
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), limit)

    Source:
      Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv 1905.03871.
    """
    share = check_quantile(quantile)
    rate = check_number("rate", rate, at_most=100)
    forever = "which it would stay for ever: it moves in proportion to itself"
    initial = check_number("initial", initial, positive=forever)

    def init(norm: Norm) -> Float[Array, ""]:
        return jnp.asarray(initial, norm.dtype) + norm

    def update(norm: Norm, state: Float[Array, ""], now: Now) -> tuple[Limit, Float[Array, ""]]:
        eta, q = numbers(norm, rate, share)
        within = (norm <= state).astype(norm.dtype)
        moved = state * jnp.exp(-eta * (within - q))
        # It moves in proportion to itself: from 0 and from infinity there would be no way back.
        range_ = jnp.finfo(norm.dtype)
        moved = jnp.clip(moved, range_.tiny, range_.max)
        return state, jnp.where(jnp.isinf(state), state, moved)

    return Threshold(init, update)
