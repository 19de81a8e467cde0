"""The singular values of arrays: as matrices, decomposed, and put together again."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Inexact

from .norms import working_dtype

Parts = tuple[Inexact[Array, "m k"], Float[Array, " k"], Inexact[Array, "k n"]]


def matrix(x: Inexact[Array, "..."]) -> Inexact[Array, "m n"]:
    """The matrix, in float32 at least, that an array of any rank counts as."""
    wide = x.astype(working_dtype(x.dtype))
    if _is_explicit(x):  # a decomposition is not computed in parts
        wide = jax.sharding.reshard(wide, P())
    return wide.reshape(-1, x.shape[-1]) if x.ndim > 1 else wide.reshape(1, -1)


def like(product: Inexact[Array, "m n"], x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """A matrix, as the array that it came from: its shape, dtype and layout."""
    product = product.reshape(x.shape).astype(x.dtype)
    return jax.sharding.reshard(product, jax.typeof(x).sharding) if _is_explicit(x) else product


@jax.custom_jvp
def decomposed(x: Inexact[Array, "m n"]) -> Parts:
    r"""$U$, $\sigma$ and $V^\top$ of $X = U\,\mathrm{diag}(\sigma)\,V^\top$."""
    if x.size == 0:
        m, n = x.shape
        return jnp.zeros((m, 0), x.dtype), jnp.zeros(0, x.real.dtype), jnp.zeros((0, n), x.dtype)
    left, values, right = jnp.linalg.svd(x, full_matrices=False)
    return left, values, right


@decomposed.defjvp
def _decomposed_jvp(primals: tuple, tangents: tuple) -> tuple[Parts, Parts]:
    # That of `jnp.linalg.svd` is infinite where singular values are equal. There the directions
    # are anyone's choice, and here they keep the one made: what is clipped does not depend on it.
    (x,), (dx,) = primals, tangents
    left, values, right = decomposed(x)
    if x.size == 0:
        return (left, values, right), (left, values, right)
    size = jnp.where(values[0] > 0, values[0], 1)  # so that no square is out of range
    s, dx_left, dx_right = values / size, left.conj().T @ dx / size, dx @ right.conj().T / size
    inner = dx_left @ right.conj().T
    gap = (s[None, :] - s[:, None]) * (s[None, :] + s[:, None])
    apart = jnp.abs(gap) > jnp.finfo(s.dtype).eps
    inverse_gap = jnp.where(apart, 1 / jnp.where(apart, gap, 1), 0).astype(x.dtype)
    inverse = jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1), 0).astype(x.dtype)
    s = s.astype(x.dtype)
    turned_left = inverse_gap * (inner * s[None, :] + s[:, None] * inner.conj().T)
    turned_right = inverse_gap * (s[:, None] * inner + inner.conj().T * s[None, :])
    outside_left = (dx_right - left @ inner) * inverse[None, :]
    outside_right = inverse[:, None] * (dx_left - inner @ right)
    tangents_out = (
        left @ turned_left + outside_left,
        jnp.diagonal(inner).real * size,
        turned_right.conj().T @ right + outside_right,
    )
    return (left, values, right), tangents_out


def recomposed(parts: Parts, factor: Float[Array, " k"], x: Inexact[Array, "..."]) -> Array:
    """The array `x` of these parts, with every singular value multiplied by its factor."""
    left, values, right = parts
    scaled = left * (factor * values)[None, :].astype(left.dtype)
    product = like(jnp.matmul(scaled, right, precision="highest"), x)
    # By selection: what keeps all its singular values is the array, to the bit.
    zeroed = jnp.where(jnp.all(factor == 0), jnp.zeros_like(x), product)
    return jnp.where(jnp.all(factor == 1), x, zeroed)


def _is_explicit(x: Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
