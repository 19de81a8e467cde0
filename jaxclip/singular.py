"""The singular values of arrays: as matrices, decomposed, and put together again."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Inexact

from .bits import largest_exponent, times_power_of_two
from .norms import working_dtype

Parts = tuple[Inexact[Array, "m k"], Float[Array, " k"], Inexact[Array, "k n"]]


def matrix(x: Inexact[Array, "..."]) -> Inexact[Array, "m n"]:
    """The matrix, in float32 at least, that an array of any rank counts as."""
    wide = x.astype(working_dtype(x.dtype))
    if _is_explicit(x):  # a decomposition is not computed in parts
        wide = jax.sharding.reshard(wide, NamedSharding(jax.typeof(x).sharding.mesh, P()))
    return wide.reshape(matrix_shape(x.shape))


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The rows and columns of that matrix."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (1, math.prod(shape))


def over_matrices(f: Callable, kept: tuple[int, ...], arrays: Sequence[bool], out: Any) -> Callable:
    """Maps a function of matrices over the axes of a stack of them.

    Args:
      f: the function.
      kept: the axes, in order.
      arrays: of each argument, whether it has the axes where the stack has them; else they come
        first.
      out: likewise of what the function returns.
    """
    for position, axis in reversed(list(enumerate(kept))):
        here = [axis - position if one else 0 for one in arrays]
        out_axes = jax.tree.map(lambda one, at=axis - position: at if one else 0, out)
        f = jax.vmap(f, in_axes=tuple(here), out_axes=out_axes)
    return f


def in_parts(f: Callable, x: Inexact[Array, "..."], limit: Array) -> tuple[Array, Array]:
    """`f(x, limit)`, an array like `x` and a number, of products to which each device has its part.

    On explicit axes they become automatic for `f`, since sums over the rows of a matrix, or over
    its columns, may each be sums over devices.
    """
    if not _is_explicit(x):
        return f(x, limit)
    layout = jax.typeof(x).sharding
    out_layouts = layout, NamedSharding(layout.mesh, P())
    axes = layout.mesh.explicit_axes
    by_parts: Callable = jax.sharding.auto_axes(f, axes=axes, out_sharding=out_layouts)
    return by_parts(_turned(x), limit)


def _turned(x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """A matrix that only its shorter axis is spread over devices of, with its longer one instead.

    Its products would have every device gather all of it.
    """
    layout = jax.typeof(x).sharding
    rows, columns = (*layout.spec, None, None)[:2]
    tall = x.ndim == 2 and x.shape[0] >= x.shape[1]
    axes, other = (columns, rows) if tall else (rows, columns)
    if x.ndim != 2 or other is not None or axes is None:
        return x
    devices = math.prod(layout.mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes))
    if max(x.shape) % devices:
        return x
    return jax.sharding.reshard(x, NamedSharding(layout.mesh, P(columns, rows)))


def with_whole_columns(x: Inexact[Array, "m n"]) -> Inexact[Array, "m n"]:
    """A matrix of which no device has parts of columns, so that all can sum over their columns."""
    return _laid(x, P(None, P.UNCONSTRAINED))


def everywhere(x: Inexact[Array, "m n"]) -> Inexact[Array, "m n"]:
    """A matrix that every device has."""
    return _laid(x, P())


def _laid(x: Array, spec: P) -> Array:
    """An array in this layout, where there is a mesh in context that the partitioner works on."""
    mesh = jax.sharding.get_abstract_mesh()
    return lax.with_sharding_constraint(x, spec) if AxisType.Auto in mesh.axis_types else x


def like(product: Inexact[Array, "m n"], x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """A matrix, as the array that it came from: its shape, dtype and layout."""
    product = product.reshape(x.shape).astype(x.dtype)
    return jax.sharding.reshard(product, jax.typeof(x).sharding) if _is_explicit(x) else product


def decompose(x: Inexact[Array, "m n"]) -> Parts:
    r"""$U$, $\sigma$ and $V^\top$ of $X = U\,\mathrm{diag}(\sigma)\,V^\top$.

    The singular values of a matrix that holds nan or infinity are nan.
    """
    e = largest_exponent(x)
    left, values, right = _decompose_in_range(times_power_of_two(x, -e))
    return left, times_power_of_two(values, e), right


@jax.custom_jvp
def _decompose_in_range(x: Inexact[Array, "m n"]) -> Parts:
    """The decomposition of a matrix whose squares are in range."""
    if x.size == 0:
        m, n = x.shape
        return jnp.zeros((m, 0), x.dtype), jnp.zeros(0, x.real.dtype), jnp.zeros((0, n), x.dtype)
    # What LAPACK does with nan and infinity is not defined.
    finite = jnp.all(jnp.isfinite(x))
    left, values, right = jnp.linalg.svd(jnp.where(finite, x, 0), full_matrices=False)
    return left, jnp.where(finite, values, jnp.nan), right


@_decompose_in_range.defjvp
def _decomposed_jvp(primals: tuple, tangents: tuple) -> tuple[Parts, Parts]:
    # That of `jnp.linalg.svd` is infinite where singular values are equal. There the directions
    # are anyone's choice, and here they keep the one made: what is clipped does not depend on it.
    (x,), (dx,) = primals, tangents
    left, values, right = _decompose_in_range(x)
    if x.size == 0:
        return (left, values, right), (left, values, right)
    s, dx_left, dx_right = values, left.conj().T @ dx, dx @ right.conj().T
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
        jnp.diagonal(inner).real,
        turned_right.conj().T @ right + outside_right,
    )
    return (left, values, right), tangents_out


def recompose(parts: Parts, factor: Float[Array, " k"], x: Inexact[Array, "..."]) -> Array:
    """The array `x` of these parts, with every singular value multiplied by its factor."""
    left, values, right = parts
    info = jnp.finfo(values.dtype)
    # Products in the middle of the range, where nothing that counts is flushed to zero.
    lift = info.nmant + 10
    lift = jnp.where(largest_exponent(values) < info.minexp + lift, lift, 0)
    # By selection: of a singular value that is beyond every number, 0 * inf is nan.
    kept = jnp.where(factor == 0, 0, factor * times_power_of_two(values, lift))
    e = largest_exponent(kept)
    scaled = left * times_power_of_two(kept, -e)[None, :].astype(left.dtype)
    product = jnp.matmul(scaled, right, precision="highest")
    product = like(times_power_of_two(product, e - lift), x)
    # By selection: what keeps all its singular values is the array, to the bit.
    zeroed = jnp.where(jnp.all(factor == 0), jnp.zeros_like(x), product)
    return jnp.where(jnp.all(factor == 1), x, zeroed)


def _is_explicit(x: Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
