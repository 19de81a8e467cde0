"""Checking a rule against the definition."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..api import clipped_grad
from ..explain import explain


def check_rule(loss: Callable, params: Any, *batch: Any, tolerance: float = 1e-4) -> None:
    """Checks that the rules a loss meets give what `vmap` of the gradient gives.

    Every parameter must meet a rule, and norms and clipped gradients in every form must agree with
    `strategy="vmap"`, for a limit that clips about half of the examples.

    Args:
      loss: `loss(params, *example)`, which reads each parameter by a primitive with a rule.
      params: the parameters.
      *batch: a batch of several examples.
      tolerance: of the differences, relative to the largest entry.

    Raises:
      AssertionError: a parameter meets no rule, or a norm or a gradient differs.

    Examples:
      >>> import jax.numpy as jnp
      >>> check_rule(lambda w, x: jnp.sum(jnp.tanh(x @ w)), jnp.eye(3), jnp.ones((4, 2, 3)))

    Source:
      The definition of a clipped gradient, Abadi et al. 2016, arXiv 1607.00133.
    """
    table = explain(loss, params, *jax.tree.map(lambda x: x[0], batch))
    if table.fallbacks:
        raise AssertionError(f"No rule is met by {', '.join(table.fallbacks)}:\n{table}")
    _, info = clipped_grad(loss, None, strategy="vmap")(params, *batch)
    limit = float(np.median(info.norms))
    wanted, exact = clipped_grad(loss, limit, strategy="vmap")(params, *batch)
    for form in ("gram", "matrices"):
        gradient, info = clipped_grad(loss, limit, form=form)(params, *batch)
        paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
        found = [info.norms, *jax.tree.leaves(gradient)]
        for name, one, true in zip(
            ["the norms", *(f"the gradient of params{path}" for path in paths)],
            found,
            [exact.norms, *jax.tree.leaves(wanted)],
            strict=True,
        ):
            largest = jnp.max(jnp.abs(true), initial=0)
            difference = jnp.max(jnp.abs(one - true), initial=0)
            if not difference <= tolerance * largest:
                raise AssertionError(
                    f'With `form="{form}"` {name} differ from those of `vmap` by {difference}, '
                    f"where the largest entry is {largest}. Look at the rule's factors and layout."
                )
