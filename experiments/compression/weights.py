"""The weights of a model: how many there are, how large, and how many of them are near zero.

Kernels are the arrays of two axes or more. They hold nearly all of the parameters, and quantization
and pruning change nothing else.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from experiments.training.config import Params

NEAR_LARGEST = 1e-3  # of the largest weight of the model
NEAR_RMS = 1e-2  # of the root mean square of the weights of the same layer


def is_kernel(leaf: Any) -> bool:
    """Returns whether an array is a kernel."""
    return len(leaf.shape) > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)


def kernels(params: Params) -> dict[str, jax.Array]:
    """Returns the kernels of a model, by their paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if is_kernel(leaf)
    }


def map_kernels(change: Any, params: Params) -> Params:
    """Returns the parameters with every kernel changed, and all else as it is."""
    return jax.tree.map(lambda leaf: change(leaf) if is_kernel(leaf) else leaf, params)


def count(params: Params) -> int:
    """Returns the number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def nbytes(params: Params) -> int:
    """Returns the bytes of all parameters."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def statistics(params: Params) -> dict[str, jax.Array]:
    r"""Returns what the kernels of a model look like, numbers f32[]; nan where one is not finite.

    Args:
        params: the parameters.

    Returns:
        `range`, the largest $|w|$; `near_largest`, the share of the weights with
        $|w| \le 10^{-3} \max |w|$; `near_rms`, the share with $|w| \le 10^{-2}$ of the RMS of their
        layer; `kurtosis`, $E[(w - \mu)^4] / \sigma^4$ of a layer (3 of a normal distribution), the
        mean over the layers by their sizes.
    """
    layers = [leaf.astype(jnp.float32).ravel() for leaf in kernels(params).values()]
    sizes = jnp.array([len(layer) for layer in layers], jnp.float32)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(layer)) for layer in layers]))

    def mean_over_layers(values: list[jax.Array]) -> jax.Array:
        mean = jnp.average(jnp.stack(values), weights=sizes)
        return jnp.where(jnp.isfinite(largest), mean, jnp.nan)

    return {
        "range": largest,
        "near_largest": mean_over_layers([near(x, NEAR_LARGEST * largest) for x in layers]),
        "near_rms": mean_over_layers([near(x, NEAR_RMS * rms(x)) for x in layers]),
        "kurtosis": mean_over_layers([kurtosis(x) for x in layers]),
    }


def near(x: jax.Array, bound: jax.Array) -> jax.Array:
    """Returns the share of the entries that are no farther from 0 than the bound."""
    return jnp.mean(jnp.abs(x) <= bound, dtype=jnp.float32)


def rms(x: jax.Array) -> jax.Array:
    """Returns the root mean square."""
    scale = jnp.max(jnp.abs(x))
    return scale * jnp.sqrt(jnp.mean(jnp.square(unit(x))))


def kurtosis(x: jax.Array) -> jax.Array:
    """Returns the fourth central moment over the squared variance; 0 where all are equal."""
    away = unit(x) - jnp.mean(unit(x))
    variance = jnp.mean(jnp.square(away))
    return jnp.where(variance > 0, jnp.mean(away**4) / jnp.square(variance), 0.0)


def unit(x: jax.Array) -> jax.Array:
    """Returns the array divided by its largest entry, so that no power leaves the range."""
    scale = jnp.max(jnp.abs(x))
    return x / jnp.where(scale > 0, scale, 1.0)
