"""Pruning of weights by magnitude, after training."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from experiments.compression.weights import kernels, map_kernels
from experiments.errors import BadInput
from experiments.training.config import Params


def prune(params: Params, share: float) -> Params:
    """Returns the parameters with the smallest entries of all kernels together made 0.

    Exactly as many as asked for: a clip of weights leaves many of one size, among which chance
    decides, always in the same way.

    Args:
        params: the parameters.
        share: of the entries of the kernels, 0 to 1.

    Raises:
        BadInput: it is no such share.

    Source:
        Han, Pool, Tran, Dally 2015, arXiv 1506.02626, without the training afterwards.
    """
    if not 0 <= share <= 1:
        raise BadInput(f"the share of the weights to be pruned is {share}: give 0 to 1")
    sizes, unravel = ravel_pytree([jnp.abs(kernel) for kernel in kernels(params).values()])
    chance = jax.random.permutation(jax.random.key(0), sizes.size)
    order = chance[jnp.argsort(sizes[chance], stable=True)]
    kept = jnp.ones(sizes.size, sizes.dtype).at[order[: round(share * sizes.size)]].set(0)
    masks = iter(unravel(kept))
    return map_kernels(lambda kernel: jnp.where(next(masks) > 0, kernel, 0), params)
