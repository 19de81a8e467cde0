r"""Shrinks: what to do about a block, given its norm and its limit.

A shrink is a function `(norm, limit) -> factor`, elementwise, and the block is multiplied by the
factor. Norms arrive finite and limits finite or infinite, neither negative; of a limit of nan the
factor is not used. A zero block and an infinite limit have factor 1, which leaves a block as it is
bit for bit; else a zero limit has factor 0, which makes it zero. Arguments beyond the two are set
with `functools.partial`.

A limit far below the norm has a factor that float32 cannot hold; `block_factor` splits it in two.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .leaves import Factor

Nonfinite = Literal["propagate", "zero"]
Shrink = Callable[[Array, Array], Array]
Values = Float[Array, "*blocks"]
Limit = Float[Array, "*#blocks"]


def hard(norm: Values, limit: Limit, *, eps: float = 0.0) -> Values:
    r"""Leaves a block within the limit alone, and scales one beyond it to the limit.

    $$s = \min\Big(1, \frac{\tau}{n + \epsilon}\Big)$$

    Args:
      norm: $n$.
      limit: $\tau$.
      eps: $\epsilon$. With `1e-6` it is what `torch.nn.utils.clip_grad_norm_` computes.

    Returns:
      The factor $s$.

    Examples:
      >>> print(hard(jnp.array([0.5, 2.0]), jnp.array(1.0)))
      [1.  0.5]
    """
    within = (norm + eps <= limit) | (norm == 0)
    return jnp.where(within, 1, _quotient(limit, jnp.where(within, 1, norm + eps)))


def smooth(norm: Values, limit: Limit) -> Values:
    r"""Approaches the limit without ever reaching it: the rational soft clip.

    $$s = \frac{\tau}{n + \tau}$$

    Args:
      norm: $n$.
      limit: $\tau$.

    Returns:
      The factor $s$; at $n = \tau$ it is one half.

    Examples:
      >>> print(smooth(jnp.array([1.0, 3.0]), jnp.array(1.0)))
      [0.5  0.25]

    Source:
      Zhang, Jin, Fang, Wang 2020, arXiv 2010.02519 (the form of the authors' code).
    """
    return _where_it_acts(lambda n, t: 1 / (1 + _quotient(n, t)), norm, limit)


def inverse_sqrt(norm: Values, limit: Limit) -> Values:
    r"""Approaches the limit as the hypotenuse does its longer side.

    $$s = \frac{1}{\sqrt{1 + (n/\tau)^2}}$$

    Args:
      norm: $n$.
      limit: $\tau$.

    Returns:
      The factor $s$; at $n = \tau$ it is $1/\sqrt 2$.

    Examples:
      >>> print(inverse_sqrt(jnp.array([0.75]), jnp.array(1.0)))
      [0.8]

    Source:
      Jiang, Semenov, Stich 2026, arXiv 2603.14315, which applies it to singular values.
    """
    return _where_it_acts(
        lambda n, t: 1 / jnp.hypot(jnp.ones_like(n), _quotient(n, t)), norm, limit
    )


def tanh(norm: Values, limit: Limit) -> Values:
    r"""Saturates at the limit as the hyperbolic tangent does.

    $$s = \frac{\tau \tanh(n/\tau)}{n}$$

    Args:
      norm: $n$.
      limit: $\tau$.

    Returns:
      The factor $s$; at $n = \tau$ it is 0.76.

    Examples:
      >>> print(tanh(jnp.array([100.0]), jnp.array(1.0)))
      [0.01]
    """

    def factor(n: Array, t: Array) -> Array:
        x = _quotient(n, t)
        small = x * x < jnp.finfo(x.dtype).eps  # tanh x = x, and x may be flushed to 0
        x = jnp.where(small, 1, x)
        return jnp.where(small, 1, jnp.tanh(x) / x)

    return _where_it_acts(factor, norm, limit)


def normalize(norm: Values, limit: Limit, *, eps: float = 0.0) -> Values:
    r"""Gives every block the norm of the limit, small ones too.

    $$s = \frac{\tau}{n + \epsilon}$$

    Args:
      norm: $n$.
      limit: $\tau$.
      eps: $\epsilon$. With `1e-2` and per example it is AUTO-S (automatic clipping).

    Returns:
      The factor $s$.

    Examples:
      >>> print(normalize(jnp.array([0.5, 2.0]), jnp.array(1.0)))
      [2.  0.5]

    Source:
      Bu, Wang, Zha, Karypis 2022, arXiv 2206.07136.
    """
    return _where_it_acts(lambda n, t: _amplified(_quotient(t, n + eps)), norm, limit)


def psac(norm: Values, limit: Limit, *, r: float = 0.1) -> Values:
    r"""Normalizes large blocks, and weights small ones less than `normalize` does.

    $$s = \frac{\tau}{n + r / (n + r)}$$

    Args:
      norm: $n$.
      limit: $\tau$.
      r: $r$, the norm below which a block is small.

    Returns:
      The factor $s$.

    Examples:
      >>> print(psac(jnp.array([0.9]), jnp.array(1.0)))
      [1.]

    Source:
      DP-PSAC, Xia et al. 2022, arXiv 2212.00328.
    """
    return _where_it_acts(lambda n, t: _amplified(_quotient(t, n + r / (n + r))), norm, limit)


def band(norm: Values, limit: Limit, *, low: float = 0.5) -> Values:
    r"""Brings a block's norm into a band: larger norms are scaled down, smaller ones up.

    $$s = \frac{\min(\max(n,\ \rho\,\tau),\ \tau)}{n}$$

    Args:
      norm: $n$.
      limit: $\tau$.
      low: $\rho$, the lower end of the band, as a share of the limit.

    Returns:
      The factor $s$.

    Examples:
      >>> print(band(jnp.array([0.25, 0.75, 2.0]), jnp.array(1.0)))
      [2.  1.  0.5]

    Source:
      AGGC, Li, Wu, Chang 2026, arXiv 2601.11864.
    """

    def factor(n: Array, t: Array) -> Array:
        return jnp.where(
            (n >= low * t) & (n <= t), 1, _amplified(_quotient(jnp.clip(n, low * t, t), n))
        )

    return _where_it_acts(factor, norm, limit)


def drop(norm: Values, limit: Limit) -> Values:
    r"""Leaves a block within the limit alone, and makes one beyond it zero.

    $$s = \mathbf 1[n \le \tau]$$

    The optimizer still takes its step, with momentum and weight decay; `skip_on_spike` does not.

    Args:
      norm: $n$.
      limit: $\tau$.

    Returns:
      The factor $s$.

    Examples:
      >>> print(drop(jnp.array([0.5, 2.0]), jnp.array(1.0)))
      [1. 0.]
    """
    return (norm <= limit).astype(norm.dtype)


def block_factor(shrink: Shrink, norm: Values, limit: Values, nonfinite: Nonfinite) -> Factor:
    r"""The factor of every block, also of one that has no finite norm or no limit that is a number.

    $$s(n, \tau) = s(n, \tau') \cdot \frac{\tau}{\tau'}, \qquad \tau' = \sqrt{n\,\tau}$$

    where the limit is so far below the norm that $s$ is out of range: there every shrink is
    proportional to its limit.

    Args:
      shrink: $s$.
      norm: $n$.
      limit: $\tau$, not negative.
      nonfinite: `"propagate"` for a factor of nan, `"zero"` for 0, where $n$ is nan or infinite or
        $\tau$ is nan.

    Returns:
      The factor, as two numbers.
    """
    usable = jnp.isfinite(norm) & (limit >= 0)  # nan is not
    n = jnp.where(usable, norm, 0)
    far = (limit > 0) & (limit < n * 2.0**-100)
    # The outcome does not depend on where the halfway is, nor does its derivative.
    halfway = jnp.where(far, lax.stop_gradient(jnp.sqrt(n) * jnp.sqrt(limit)), 1)
    first = shrink(n, jnp.where(far, halfway, limit))
    bad = 0 if nonfinite == "zero" else jnp.nan
    return Factor(jnp.where(usable, first, bad), jnp.where(far, limit / halfway, 1))


@jax.custom_jvp
def _quotient(a: Array, b: Array) -> Array:
    return a / b


@_quotient.defjvp
def _quotient_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    r"""$\dot a / b - (a / b)(\dot b / b)$, with no $b^2$, which leaves the range at 1e-19."""
    (a, b), (da, db) = primals, tangents
    return a / b, da / b - (a / b) * (db / b)


def _amplified(factor: Array) -> Array:
    """A factor that may exceed 1, but not the range: 0 times infinity is nan."""
    return jnp.minimum(factor, jnp.finfo(factor.dtype).max)


def _where_it_acts(factor: Callable, norm: Array, limit: Array) -> Array:
    # The operands are replaced as well as the result, so that no derivative meets 0/0 or inf/inf.
    acts = (norm > 0) & (limit > 0) & (limit < jnp.inf)
    value = factor(jnp.where(acts, norm, 1), jnp.where(acts, limit, 1))
    return jnp.where(acts, value, jnp.where((norm > 0) & (limit == 0), 0, 1))
