"""Convolutions: sums of outer products for every offset in the kernel."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .products import arranged, contract, gram
from .program import Site


def squared(site: Site, act: Array, out_grad: Array) -> Array:
    """The squared norm of a convolution's gradient for one example, by Gram matrices."""
    slices, v = _factors(site, act, out_grad)
    offsets = _offsets(site)

    def add(total: Array, offset: Array) -> tuple[Array, None]:
        return total + gram(slices(offset), slices(offset)), None

    grams = gram(v, v)
    total, _ = lax.scan(add, jnp.zeros_like(grams), offsets)
    return jnp.sum(total * grams)


def gradient(site: Site, act: Array, out_grad: Array) -> Array:
    """The gradient of one example with respect to a kernel, summed over the iterations."""
    # A matrix product for every offset in the kernel, one at a time: neither the patches of all
    # offsets, which are as many times larger than the activation, nor a convolution grouped by
    # example, which is several times slower on a CPU, is ever made.
    slices, v = _factors(site, act, out_grad)
    weight, kernel = site.eqn.invars[1].aval, site.eqn.params["dimension_numbers"].rhs_spec

    def at(offset: Array) -> Array:
        return contract(slices(offset), v, 1)

    products = lax.map(at, _offsets(site))  # [offset, g, d, p]
    products = jnp.transpose(products, (1, 3, 2, 0))
    shaped = products.reshape([weight.shape[d] for d in kernel])
    return jnp.transpose(shaped, [kernel.index(d) for d in range(weight.ndim)])


def _offsets(site: Site) -> Array:
    shape, kernel = site.eqn.invars[1].aval.shape, site.eqn.params["dimension_numbers"].rhs_spec
    grid = jnp.indices([shape[d] for d in kernel[2:]], dtype=jnp.int32)
    return grid.reshape(len(kernel) - 2, -1).T


def _factors(site: Site, act: Array, out_grad: Array) -> tuple[Callable[[Array], Array], Array]:
    """The left factors of a convolution as a function of the offset, and the right factors."""
    params, loops = site.eqn.params, out_grad.ndim - site.output.ndim
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    out = arranged(out_grad, loops, (), (numbers.out_spec[0],), numbers.out_spec[1:])
    spatial = [site.output.shape[d] for d in numbers.out_spec[2:]]
    out = out.reshape(out.shape[1], groups, -1, *spatial)  # [n, g, p, *spatial]
    v = jnp.moveaxis(out, 2, -1).swapaxes(0, 1).reshape(groups, -1, out.shape[2])
    lhs = site.eqn.invars[0].aval.shape
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

    def slices(offset: Array) -> Array:
        start = offset * dilations
        zero = jnp.zeros((), jnp.int32)
        part = lax.dynamic_slice(x, (zero, *start, zero), (x.shape[0], *window, x.shape[-1]))
        part = part[(slice(None), *(slice(None, None, stride) for stride in strides))]
        return jnp.swapaxes(part.reshape(-1, groups, x.shape[-1] // groups), 0, 1)

    return slices, v
