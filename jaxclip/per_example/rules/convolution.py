"""Convolutions: sums of outer products for every offset in the kernel."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..products import Patches, arranged, contract
from ..program import Site
from .base import Factors, Layout, Rule, Sizes, rest, sum_by_transpose, with_scans


def activation(eqn: Any, weight: int, examples: Sequence[int]) -> int | None:
    """The image; a convolution of a weight by an example has no rule."""
    ruled = weight == 1 and list(examples) == [0] and eqn.params["batch_group_count"] == 1
    return 0 if ruled else None


def layout(site: Site) -> Layout:
    """The features of the output on the right, for all groups."""
    features = site.eqn.params["dimension_numbers"].rhs_spec[0]
    return Layout((), rest(site.kernel.ndim, (features,)), (features,))


def sizes(site: Site) -> Sizes:
    """A matrix for each group of features."""
    shape, groups = site.kernel.shape, site.eqn.params["feature_group_count"]
    features = shape[site.eqn.params["dimension_numbers"].rhs_spec[0]]
    left, positions = math.prod(shape) // features, site.output.size // features
    return with_scans(site, Sizes(groups, positions, left, features // groups))


def matrices(site: Site, act: Array, out_grad: Array, precision: Any) -> Array:
    """The gradient of one example with respect to a kernel, summed over the iterations."""
    # A matrix product for every offset in the kernel, one at a time: neither the patches of all
    # offsets, which are as many times larger than the activation, nor a convolution grouped by
    # example, which is several times slower on a CPU, is ever made.
    patches, v = _patches(site, act, out_grad)
    weight, kernel = site.kernel, site.eqn.params["dimension_numbers"].rhs_spec

    def at(offset: Array) -> Array:
        return contract(patches.at(offset), v, 1, precision)

    products = lax.map(at, patches.offsets)  # [offset, g, d, p]
    products = jnp.transpose(products, (1, 3, 2, 0))
    shaped = products.reshape([weight.shape[d] for d in kernel])
    return jnp.transpose(shaped, [kernel.index(d) for d in range(weight.ndim)])


def factors(site: Site, act: Array, out_grad: Array) -> Factors:
    """The patches of the image, and the gradient of the output."""
    return Factors(*_patches(site, act, out_grad))


def _patches(site: Site, act: Array, out_grad: Array) -> tuple[Patches, Array]:
    """The slices of the image that each offset meets, and the gradient of the output."""
    params, loops = site.eqn.params, out_grad.ndim - site.output.ndim
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    out = arranged(out_grad, loops, (), (numbers.out_spec[0],), numbers.out_spec[1:])
    spatial = [site.output.shape[d] for d in numbers.out_spec[2:]]
    width = site.output.shape[numbers.out_spec[1]] // groups
    out = out.reshape(out.shape[1], groups, width, *spatial)  # [n, g, p, *spatial]
    v = jnp.moveaxis(out, 2, -1).swapaxes(0, 1).reshape(groups, -1, width)
    lhs, rhs = (site.eqn.invars[i].aval.shape for i in range(2))
    inner = tuple(numbers.lhs_spec[2:])
    x = arranged(act, loops, (), (numbers.lhs_spec[0],), (*inner, numbers.lhs_spec[1]))
    x = x.reshape(x.shape[1], *(lhs[d] for d in inner), lhs[numbers.lhs_spec[1]])
    config = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    strides, dilations = params["window_strides"], jnp.array(params["rhs_dilation"], jnp.int32)
    window = [(n - 1) * stride + 1 for n, stride in zip(spatial, strides, strict=True)]
    depth = x.shape[-1] // groups

    def slices(offset: Array) -> Array:
        start = offset * dilations
        zero = jnp.zeros((), jnp.int32)
        part = lax.dynamic_slice(x, (zero, *start, zero), (x.shape[0], *window, x.shape[-1]))
        part = part[(slice(None), *(slice(None, None, stride) for stride in strides))]
        return jnp.swapaxes(part.reshape(-1, groups, depth), 0, 1)

    kernel = [rhs[d] for d in numbers.rhs_spec[2:]]
    count = math.prod(kernel)
    offsets = jnp.indices(kernel, dtype=jnp.int32).reshape(len(kernel), count).T
    return Patches(slices, offsets, count * depth), v


CONVOLUTION = Rule(
    activation, factors, layout, sizes, matrices, total=sum_by_transpose, aligned=False
)
