r"""Arithmetic on the bits of numbers, right for subnormal numbers too.

XLA may flush subnormal numbers (below $2^{-126}$ in float32) to zero, on the CPU even in a
comparison, so that to it $10^{-40} \le 10^{-41}$. The functions here take the bits apart instead.
LLVM is not told of it, and makes comparisons of numbers of `bits == 0` and `where(x < 0, 0, x)`:
the code here has neither.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact, Int


class _Format(NamedTuple):
    """An IEEE format of 32 or 64 bits: its integers, and the size of its fields."""

    integer: jnp.dtype
    fraction: int  # bits
    bias: int  # of the exponent

    @property
    def unit(self) -> int:
        """The exponent of the smallest subnormal number."""
        return 1 - self.bias - self.fraction


def _format(dtype: jnp.dtype) -> _Format:
    info = jnp.finfo(dtype)
    return _Format(jnp.dtype(f"int{info.bits}"), info.nmant, 1 - int(info.minexp))


def magnitude(x: Inexact[Array, "*shape"]) -> Int[Array, "*shape"]:
    r"""Integers in the order of $|x|$, real or complex, of 32 or 64 bits; nan is the largest."""
    if jnp.iscomplexobj(x):  # |x| is flushed where both parts are subnormal
        return functools.reduce(jnp.maximum, map(magnitude, (jnp.abs(x), x.real, x.imag)))
    integer = _format(x.dtype).integer
    return lax.bitcast_convert_type(x, integer) & jnp.array(jnp.iinfo(integer).max, integer)


def normal_size(magnitudes: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The sizes of magnitudes; what is subnormal becomes the smallest normal number."""
    dtype = jnp.dtype(f"float{magnitudes.dtype.itemsize * 8}")
    floor = magnitude(jnp.asarray(jnp.finfo(dtype).tiny, dtype))
    normal = jnp.where(magnitudes > 0, jnp.maximum(magnitudes, floor), 0)
    return lax.bitcast_convert_type(normal, dtype)


@jax.custom_jvp
def at_least_normal(size: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The size, or the smallest normal number where it is subnormal, so that it compares right."""
    return normal_size(magnitude(size))


at_least_normal.defjvps(lambda tangent, value, size: tangent)


def no_larger(x: Float[Array, "*shape"], limit: Float[Array, ""]) -> Bool[Array, "*shape"]:
    r"""Whether $|x| \le |\tau|$; nan is beyond everything, and so is everything beyond 0."""
    most = magnitude(limit)
    return magnitude(x) < most + jnp.minimum(most, 1)


def not_negative(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""$\max(x, 0)$; of nan, nan."""
    return jnp.where(jnp.signbit(x) & ~jnp.isnan(x), jnp.zeros((), x.dtype), x)


def exponent(x: Inexact[Array, "*shape"]) -> Int[Array, "*shape"]:
    r"""The integer $e$ with $2^{e-1} \le |x| < 2^e$, or 0 where there is none.

    Of a complex number it is that of its larger part.
    """
    x = _larger_part(x)
    form = _format(x.dtype)
    normal, shift = _normal(x)
    e = (magnitude(normal) >> form.fraction) - (form.bias - 1) + shift
    return jnp.where((normal > 0) & jnp.isfinite(x), e, 0).astype(jnp.int32)


@jax.jit
def largest_exponent(x: Inexact[Array, "..."]) -> Int[Array, ""]:
    """The exponent of the largest entry."""
    x = _larger_part(x)
    largest = jnp.max(magnitude(x), initial=0)
    return exponent(lax.bitcast_convert_type(largest, x.dtype))


def _larger_part(x: Array) -> Array:
    if not jnp.iscomplexobj(x):
        return x
    return jnp.where(magnitude(x.real) > magnitude(x.imag), x.real, x.imag)


@jax.jit  # outside of another `jit` one program, and not one for every operation
def times_power_of_two(
    x: Inexact[Array, "*shape"], e: Int[Array, "*#shape"]
) -> Inexact[Array, "*shape"]:
    r"""$x \cdot 2^e$, rounded once, for $|e|$ up to twice the largest exponent of the dtype."""
    return _times_power_of_two(x, e)


@jax.custom_jvp
def _times_power_of_two(x: Array, e: Array) -> Array:
    if jnp.iscomplexobj(x):
        return lax.complex(_times_power_of_two(x.real, e), _times_power_of_two(x.imag, e))
    form = _format(x.dtype)
    normal, shift = _normal(x)
    e = e.astype(form.integer) + shift
    product = _times(normal, e, form)
    # A subnormal result is a whole number of units, and its bits are that number.
    units = jnp.round(_times(normal, e - form.unit, form))
    small = product < jnp.finfo(x.dtype).smallest_normal
    bits = jnp.where(
        small,
        jnp.where(small, units, 0).astype(form.integer),
        lax.bitcast_convert_type(product, form.integer),
    )
    sign = lax.bitcast_convert_type(x, form.integer) & jnp.array(
        jnp.iinfo(form.integer).min, form.integer
    )
    return lax.bitcast_convert_type(bits | sign, x.dtype)


@_times_power_of_two.defjvp
def _times_power_of_two_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, e), (dx, _) = primals, tangents
    form = _format(x.dtype)
    return _times_power_of_two(x, e), _times(dx, e.astype(form.integer), form)  # linear in `dx`


def _normal(x: Array) -> tuple[Array, Array]:
    r"""A normal number (or zero, infinity, nan) and an integer $s$: $|x| = y\,2^s$."""
    form = _format(x.dtype)
    bits = magnitude(x)
    subnormal = bits < (1 << form.fraction)
    size = lax.bitcast_convert_type(bits, x.dtype)
    return (
        jnp.where(subnormal, bits.astype(x.dtype), size),
        jnp.where(subnormal, form.unit, 0).astype(form.integer),
    )


def _times(x: Array, e: Array, form: _Format) -> Array:
    """Multiplies by powers of two that are normal numbers, of which four reach everywhere."""
    most = form.bias - 1
    for _ in range(4):
        part = jnp.clip(e, -most, most)
        e = e - part
        power = lax.bitcast_convert_type((part + form.bias) << form.fraction, x.real.dtype)
        x = x * power.astype(x.dtype)
    return x
