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
from .products import accumulator

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


def power(k: Array, dtype: Any) -> Array:
    """Two to the power of integers within the exponents of a dtype, exactly."""
    info = jnp.finfo(dtype)
    whole = jnp.int64 if info.bits == 64 else jnp.int32
    bits = lax.shift_left(
        (k + (info.maxexp - 1)).astype(whole), jnp.full(k.shape, info.nmant, whole)
    )
    return lax.bitcast_convert_type(bits, dtype)


def exponent(x: Array) -> Array:
    """The exponents of numbers that are not negative; 0 for zero, infinity and nan."""
    info = jnp.finfo(x.dtype)
    whole = jnp.int64 if info.bits == 64 else jnp.int32
    bits = lax.bitcast_convert_type(x, whole)
    raised = lax.shift_right_logical(bits, jnp.full(x.shape, info.nmant, whole)).astype(jnp.int32)
    usable = (x > 0) & jnp.isfinite(x)
    return jnp.where(usable, raised - (info.maxexp - 1), 0)


def times_power(x: Array, k: Array) -> Array:
    """`x * 2**k`, for a `k` that a single float may not hold."""
    dtype = accumulator(x.dtype)
    third = k // 3
    product = x.astype(dtype)
    for part in (third, third, k - 2 * third):
        product = product * power(part, dtype)
    return product
