r"""How far a norm can be from what rounding made of it.

With `eps` the spacing of floats at 1, a sum of $n$ products is computed with an error of at most
$\gamma_n \sum_i |x_i y_i|$, in whatever order, rounded to nearest or cut off,

$$\gamma_n = \frac{n\,\mathrm{eps}}{1 - n\,\mathrm{eps}}, \qquad
  (1 + \gamma_m)(1 + \gamma_n) \le 1 + \gamma_{m+n},$$

and with the inequality of Cauchy and Schwarz a Gram sum $\sum_{ts} \langle a_t, a_s\rangle
\langle b_t, b_s\rangle$ over $d$ and $e$ features, summed by $t$ and then by $s$, with at most
$\gamma_{d+e+2T}\,\big(\sum_t \|a_t\| \|b_t\|\big)^2$. A few more roundings, of the factor, the
limit and the lengths themselves, are counted by `SPARE`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .. import norms
from .products import accumulator, total, wide

SPARE = 32


def gamma(n: int, dtype: Any) -> float:
    r"""$\gamma_n$, infinite where nothing can be proven."""
    part = n * float(jnp.finfo(dtype).eps)
    return part / (1 - part) if part < 1 else math.inf


def staged(x: Array) -> tuple[Array, int]:
    """The sum of all entries in two stages, and how many additions any entry goes through."""
    width = max(1, math.isqrt(x.size))
    height = -(-x.size // width)
    flat = jnp.pad(x.reshape(x.size), (0, height * width - x.size))
    # The compiler would join two sums into one.
    rows = lax.optimization_barrier(jnp.sum(flat.reshape(height, width), 1))
    return jnp.sum(rows), height + width


def bound_of_norms(blocks: Sequence[Sequence[Array]], size: int) -> list[Array]:
    """Norms `[size]` of arrays `[size, *shape]` over all but the first axis, rounded upward."""
    bounds = []
    for block in blocks:
        rows, depth = [], len(block)
        for x in block:
            count = x.size // size
            width = max(1, math.isqrt(count))
            height = -(-count // width)
            flat = jnp.pad(x.reshape(size, count), ((0, 0), (0, height * width - count)))
            rows += norms.l2([[flat.reshape(size, height, width)]], [(0, 1)])
            depth += height + width
        if not block:
            bounds.append(jnp.zeros(size, jnp.float32))
            continue
        (value,) = norms.l2([rows], [(0,)])
        bounds.append(value * (1 + gamma(depth + SPARE, value.dtype)))
    return bounds


# Of `lax`, here and elsewhere, what runs once for every parameter: it is traced several times
# faster than the same of `jax.numpy`. For that reason the powers of two are not those of `bits`,
# which are exact for subnormal numbers as well; here they are flushed.


def exponent_of(x: Array) -> Array:
    """The exponents of numbers that are not negative; 0 for zero, infinity and nan."""
    info, whole = _format(x.dtype)
    bits = lax.bitcast_convert_type(x, whole)
    raised = lax.shift_right_logical(bits, lax.full_like(bits, info.nmant))
    k = lax.sub(
        lax.convert_element_type(raised, jnp.int32), lax.full(x.shape, info.maxexp - 1, jnp.int32)
    )
    usable = lax.bitwise_and(lax.gt(x, lax.full_like(x, 0)), lax.is_finite(x))
    return lax.select(usable, k, lax.full_like(k, 0))


def times_power(x: Array, k: Array) -> Array:
    """`x * 2**k`, exactly, for a `k` that a single float may not hold."""
    info, whole = _format(accumulator(x.dtype))
    k = lax.convert_element_type(k, whole)
    third = lax.div(k, lax.full_like(k, 3))
    rest = lax.sub(k, lax.add(third, third))
    product = wide(x)
    for part in (third, third, rest):
        raised = lax.add(part, lax.full_like(part, info.maxexp - 1))
        bits = lax.shift_left(raised, lax.full_like(part, info.nmant))
        product = lax.mul(product, lax.bitcast_convert_type(bits, product.dtype))
    return product


def safe_norm(x: Array) -> Array:
    """The norm of an array over the whole range of its dtype."""
    largest = lax.reduce_max(lax.abs(x), tuple(range(x.ndim)))
    k = exponent_of(largest)
    ratios = times_power(x, lax.broadcast(lax.neg(k), x.shape))
    return times_power(lax.sqrt(total(lax.mul(ratios, ratios))), k)


def _format(dtype: Any) -> tuple[Any, Any]:
    info = jnp.finfo(dtype)
    return info, jnp.int64 if info.bits == 64 else jnp.int32
