r"""The norm of a sum of outer products, without the sum.

$$\Big\|\sum_t a_t \otimes b_t\Big\|^2 = \sum_{ts} \langle a_t, a_s\rangle \langle b_t, b_s\rangle
  \;\le\; \Big(\sum_t \|a_t\| \|b_t\|\Big)^2$$

Rounding errors are as large as a small part of the right side. Where positions cancel, and the left
side is no larger than that, the sum has to be made: some features at a time, so that no more than
the factors themselves take is ever held.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .products import EXACT, Factor, Ids, Patches, accumulator, features, gram, outer, total, wide
from .rounding import SPARE, exponent_of, gamma, safe_norm, times_power

Pair = tuple[Factor, Factor]

# Positions that have nothing to do with one another give 1/T of the right side. A Gram sum is
# trusted down to a sixteenth of that.
_CANCELLED = 16
# A bound is good enough if the square is not raised by more than this part of it.
_RAISED = 0.02
# Below the exponent of any product.
_LOWEST = -10_000


class Square(NamedTuple):
    """A squared norm.

    Attributes:
      value: the square, or a bound of it.
      doubt: what the squares of a block must reach in sum for its norm to be good enough.
    """

    value: Array
    doubt: Array


def squared(pairs: Sequence[Pair], bound: bool, floored: bool = True) -> Square:
    """The squared norm of a sum of outer products by Gram matrices.

    Args:
      pairs: the factors of each site; all sites have the same two sides.
      bound: whether to raise the square by all that rounding may have taken from it.
      floored: whether squares of lengths may have been too small for a float, so that a length
        of zero is not taken at its word.
    """
    us, vs = zip(*pairs, strict=True)
    left, right = _products(us, floored), _products(vs, floored)
    positions = sum(_positions(v) for v in vs)
    dtype = accumulator(*(g.dtype for g, _ in (*left.values(), *right.values())))
    values, sizes = [], []
    for i, j in left:
        (g, a), (h, b) = left[i, j], right[i, j]
        g, a, h, b = (lax.convert_element_type(x, dtype) for x in (g, a, h, b))
        times = 1 if i == j else 2
        values += times * [_sum(lax.mul(g, h), bound)]
        sizes += times * [total(lax.mul(a, b))]
    value, size = functools.reduce(lax.add, values), functools.reduce(lax.add, sizes)
    value = lax.max(value, lax.full_like(value, 0))
    if not bound:
        share = lax.full_like(size, 1 / (_CANCELLED * positions))
        return Square(value, lax.mul(size, share))
    depth = max(map(features, us)) + max(map(features, vs)) + 2 * positions
    depth += left[0, 0][0].shape[0] + len(pairs) ** 2 + SPARE
    error = gamma(depth, dtype) * size
    return Square(value + error, error / _RAISED)


def _products(factors: Sequence[Factor], floored: bool) -> dict:
    """For each pair of sites the inner products, and what these can be at most."""
    grams = {(i, j): gram(f, factors[j]) for i, f in enumerate(factors) for j in range(i + 1)}
    lengths = [_lengths(f, grams[i, i], floored) for i, f in enumerate(factors)]
    return {
        (i, j): (
            g,
            lax.abs(g)
            if isinstance(factors[i], Ids) or isinstance(factors[j], Ids)
            else lax.mul(
                lax.broadcast_in_dim(lengths[i], g.shape, (0, 1)),
                lax.broadcast_in_dim(lengths[j], g.shape, (0, 2)),
            ),
        )
        for (i, j), g in grams.items()
    }


def _lengths(factor: Factor, own: Array, floored: bool) -> Array:
    """The lengths `[g, t]` of vectors, given their inner products."""
    rows, columns = (lax.broadcasted_iota(jnp.int32, own.shape, axis) for axis in (1, 2))
    diagonal = lax.select(lax.eq(rows, columns), own, lax.full_like(own, 0))
    squares = lax.reduce_sum(diagonal, (2,))
    # Squares below the smallest float are lost from the sum.
    info = jnp.finfo(own.dtype)
    lost = features(factor) * float(info.tiny) / float(info.eps) if floored else 0.0
    return lax.sqrt(lax.add(squares, lax.full_like(squares, lost)))


def _sum(x: Array, staged: bool) -> Array:
    if not staged:
        return total(x)
    for _ in range(x.ndim):  # the compiler would join the sums into one
        x = lax.optimization_barrier(jnp.sum(x, -1))
    return x


class Scaled(NamedTuple):
    """Factors in range: their sum is `2**exponent` times the sum of these.

    Attributes:
      pairs: the factors, each vector of a length near 1, or less beside longer products.
      exponent: an integer.
    """

    pairs: list[Pair]
    exponent: Array


def scaled(pairs: Sequence[Pair]) -> Scaled:
    """Scales every vector by a power of two, and so without an error."""
    exponents = [(_exponents(u), _exponents(v)) for u, v in pairs]
    lowest = lax.full((), _LOWEST, jnp.int32)
    largest = lowest
    for p, q in exponents:
        valid = lax.bitwise_and(p.valid, q.valid)
        product = lax.select(valid, lax.add(p.value, q.value), lax.broadcast(lowest, valid.shape))
        largest = lax.max(largest, lax.reduce_max(product, (0, 1)))
    largest = lax.select(lax.gt(largest, lowest), largest, lax.full_like(largest, 0))
    found: list[Pair] = []
    for (u, v), (p, q) in zip(pairs, exponents, strict=True):
        valid = lax.bitwise_and(p.valid, q.valid)
        common = lax.broadcast(largest, valid.shape)
        # One of two factors has what is left of the product's exponent; an index has none.
        mine, other = (q, p) if isinstance(v, Ids) else (p, q)
        own = lax.neg(mine.value)
        rest = lax.select(valid, lax.sub(mine.value, common), lax.neg(other.value))
        of_u, of_v = (rest, own) if isinstance(v, Ids) else (own, rest)
        found.append((_times(u, of_u), _times(v, of_v)))
    return Scaled(found, largest)


def norm(pairs: Sequence[Pair], bound: bool) -> Square:
    """As `squared`, of factors of any size, and in norms: the value may be large or small."""
    return _once_a_shape(_norm, pairs, bound)


def norm_of_sum(pairs: Sequence[Pair], bound: bool) -> Array:
    """The norm of a sum of outer products, from the sum itself."""
    return _once_a_shape(_norm_of_sum, pairs, bound)


def _once_a_shape(of: Callable, pairs: Sequence[Pair], bound: bool) -> Any:
    """Traces a function once for all weights of one shape; its branch is rarely taken."""
    if any(isinstance(factor, Patches) for pair in pairs for factor in pair):
        return of(pairs, bound)
    return _jitted(of)(pairs, bound)


@functools.cache
def _jitted(of: Callable) -> Callable:
    return jax.jit(of, static_argnums=1)


def _norm(pairs: Sequence[Pair], bound: bool) -> Square:
    in_range = scaled(pairs)
    square = squared(in_range.pairs, bound, floored=False)
    return Square(*(times_power(lax.sqrt(x), in_range.exponent) for x in square))


def _norm_of_sum(pairs: Sequence[Pair], bound: bool) -> Array:
    pairs, exponent = scaled(pairs)
    if not isinstance(pairs[0][0], Patches) and _size(pairs[0][0]) > _size(pairs[0][1]):
        pairs = [(v, u) for u, v in pairs]
    first, other = pairs[0]
    inputs = sum(_positions(v) * (_size(u) + _size(v)) for u, v in pairs)
    size = _size(first)
    matrix = _groups(other) * _size(other)
    count = next(
        n for n in range(1, size + 1) if size % n == 0 and size // n <= max(1, inputs // matrix)
    )
    repeats = first.offsets.shape[0] if isinstance(first, Patches) else 1

    def part(i: Array) -> Array:
        products = [outer(_some(u, i, count), v, EXACT) for u, v in pairs]
        return safe_norm(functools.reduce(lax.add, products))

    parts = lax.map(part, jnp.arange(repeats * count, dtype=jnp.int32))
    value = safe_norm(parts)
    if bound:
        depth = matrix * (size // count) + repeats * count + SPARE
        value = value * (1 + gamma(depth, value.dtype)) + slack(pairs)
    return times_power(value, exponent)


def slack(pairs: Sequence[Pair]) -> Array:
    r"""How much shorter than the true sum rounding can have made it: $\gamma \sum \|a\| \|b\|$."""
    sums = [total(_norms(u) * _norms(v)) for u, v in pairs]
    dtype = accumulator(*(x.dtype for x in sums))
    positions = sum(_positions(v) for _, v in pairs)
    lengths = max(features(f) for pair in pairs for f in pair)
    error = gamma(positions + 8, dtype) * (1 + gamma(lengths + SPARE, dtype))
    return error * functools.reduce(operator.add, [x.astype(dtype) for x in sums])


def slack_of_any(pairs: Sequence[Pair]) -> Array:
    """As `slack`, of factors of any size."""
    in_range = scaled(pairs)
    return times_power(slack(in_range.pairs), in_range.exponent)


class _Exponents(NamedTuple):
    """The exponents `[g, t]` of the largest entries of vectors, and which of these are not zero."""

    value: Array
    valid: Array


def _exponents(factor: Factor) -> _Exponents:
    if isinstance(factor, Ids):
        valid = (factor.positions >= 0)[None]
        return _Exponents(jnp.zeros(valid.shape, jnp.int32), valid)
    if isinstance(factor, Patches):
        largest = jnp.max(lax.map(lambda o: _largest(factor.at(o)), factor.offsets), 0)
    else:
        largest = _largest(factor)
    return _Exponents(exponent_of(largest), lax.gt(largest, lax.full_like(largest, 0)))


def _largest(x: Array) -> Array:
    return lax.reduce_max(lax.abs(wide(x)), (2,))


def _times(factor: Factor, k: Array) -> Factor:
    def one(x: Array) -> Array:
        return times_power(x, lax.broadcast_in_dim(k, x.shape, (0, 1)))

    if isinstance(factor, Ids):
        return factor
    return (
        factor._replace(at=lambda o: one(factor.at(o)))
        if isinstance(factor, Patches)
        else one(factor)
    )


def _norms(factor: Factor) -> Array:
    """The lengths `[g, t]` of vectors in range."""
    if isinstance(factor, Ids):
        return (factor.positions >= 0)[None].astype(jnp.float32)
    if isinstance(factor, Patches):
        squares = jnp.sum(lax.map(lambda o: _squares(factor.at(o)), factor.offsets), 0)
    else:
        squares = _squares(factor)
    return jnp.sqrt(squares)


def _squares(x: Array) -> Array:
    return jnp.sum(jnp.square(wide(x)), 2)


def _positions(factor: Factor) -> int:
    if isinstance(factor, Ids):
        return factor.positions.shape[0]
    assert not isinstance(factor, Patches)
    return factor.shape[1]


def _groups(factor: Factor) -> int:
    assert not isinstance(factor, Patches)
    return 1 if isinstance(factor, Ids) else factor.shape[0]


def _size(factor: Factor) -> int:
    """How long the vectors are, or the part of them that an offset has."""
    if isinstance(factor, Ids):
        return factor.size
    if isinstance(factor, Patches):
        return factor.features // factor.offsets.shape[0]
    return factor.shape[2]


def _some(factor: Factor, i: Array, count: int) -> Factor:
    """A part of the features: one of `count`, of one offset if there are offsets."""
    size = _size(factor) // count
    if isinstance(factor, Ids):
        moved = factor.positions - i * size
        return Ids(jnp.where((moved >= 0) & (moved < size), moved, -1), size)
    if isinstance(factor, Patches):
        offset = lax.dynamic_index_in_dim(factor.offsets, i // count, 0, keepdims=False)
        factor, i = factor.at(offset), i % count
    return lax.dynamic_slice_in_dim(factor, i * size, size, 2)
