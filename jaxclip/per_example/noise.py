"""How noisy a gradient is, from the norms of its examples."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from ..norms import working_dtype
from . import checks
from .decision import Info, mask_and_count


class NoiseScale(NamedTuple):
    """The parts of the gradient noise scale, one number each or a tree as the norms are.

    Attributes:
      trace: an unbiased estimate of the sum of the variances of an example's gradient.
      square: an unbiased estimate of the squared norm of the true gradient. It may be negative
        where the noise is large.
    """

    trace: PyTree
    square: PyTree

    @property
    def scale(self) -> PyTree:
        """The batch size at which noise and gradient are as large as one another."""
        return jax.tree.map(operator.truediv, self.trace, self.square)


def noise_scale(
    info: Info, gradient: PyTree, example_mask: Bool[Array, " batch"] | None = None
) -> NoiseScale:
    r"""The simple gradient noise scale, from one call of `clipped_grad` without a limit.

    $$\mathcal B = \frac{\operatorname{tr} \Sigma}{\|G\|^2}, \qquad
      \operatorname{tr} \Sigma \approx
        \frac{B}{B - 1} \Big(\overline{\|g_i\|^2} - \|\bar g\|^2\Big), \quad
      \|G\|^2 \approx \frac{B \|\bar g\|^2 - \overline{\|g_i\|^2}}{B - 1}$$

    Both parts are unbiased, and their ratio is not: average `trace` and `square` over some hundred
    steps each, and divide then, as `scale` does.

    Args:
      info: the `Info` of the batch from `clipped_grad(loss, None)`; with a tree of None for limits,
        the result is one of each block.
      gradient: $\bar g$, the mean that it returned.
      example_mask: that of the call.

    Returns:
      Both parts, of which `scale` is the ratio.

    Raises:
      ValueError: there is only one example, or the norms are not those of this gradient.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import clipped_grad
      >>> x = jnp.array([[1.0, 2.0], [1.0, 0.0]])
      >>> gradient, info = clipped_grad(lambda w, x: jnp.sum(w * x), None)(jnp.zeros(2), x)
      >>> print(noise_scale(info, gradient))
      NoiseScale(trace=Array(2., dtype=float32), square=Array(1., dtype=float32))

    Source:
      McCandlish, Kaplan, Amodei 2018, arXiv 1812.06162, appendix A.1, with batches of 1 and B.
    """
    size = info.values.shape[0]
    if size < 2:
        raise ValueError(
            "`info` is of one example, whose gradient has no variance. Give two at least."
        )
    norms, treedef = jax.tree.flatten(info.norms)
    of = checks.blocks_of(treedef.unflatten([0.0] * len(norms)), gradient, "info.norms").of
    _, count = mask_and_count(example_mask, size)
    traces, squares = [], []
    for block, norm in enumerate(norms):
        wide = norm.astype(working_dtype(norm.dtype))
        examples = count.astype(wide.dtype)
        of_one = jnp.sum(jnp.square(wide)) / examples  # norms of masked examples are 0
        parts = [
            jnp.sum(jnp.square(jnp.abs(leaf.astype(working_dtype(leaf.dtype)))))
            for leaf, b in zip(jax.tree.leaves(gradient), of, strict=True)
            if b == block
        ]
        of_mean = functools.reduce(operator.add, parts, jnp.zeros_like(of_one))
        traces.append((of_one - of_mean) * examples / (examples - 1))
        squares.append((examples * of_mean - of_one) / (examples - 1))
    return NoiseScale(treedef.unflatten(traces), treedef.unflatten(squares))
