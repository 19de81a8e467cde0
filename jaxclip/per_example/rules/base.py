"""The record of a rule, and the norms and sums that follow from its factors."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend import core
from jaxtyping import Array

from ..products import EXACT, Factor, Ids, outer
from ..program import Site


class Factors(NamedTuple):
    """The outer products of one example: `u[g, t, d]` and `v[g, t, p]`, one matrix a group.

    Attributes:
      u: the left factors, of the activation.
      v: the right factors, of the gradient with respect to the output.
    """

    u: Factor
    v: Factor


class Layout(NamedTuple):
    """Which dimensions of a weight make up the groups and the two sides of its matrices.

    Attributes:
      groups: the dimensions that number the matrices.
      left: those of the left factors, in the order of their features.
      right: those of the right factors.
    """

    groups: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]


class Sizes(NamedTuple):
    """Groups, positions and the two sides of the matrices of a site, its scans included."""

    groups: int
    positions: int
    left: int
    right: int


def sizes_of_layout(site: Site) -> Sizes:
    """The sizes of a site whose weight is laid out in matrices."""
    sides = rule_of(site).layout(site)
    groups, left, right = (math.prod(site.kernel.shape[d] for d in dims) for dims in sides)
    return with_scans(site, Sizes(groups, site.output.size // (groups * right), left, right))


def with_scans(site: Site, one: Sizes) -> Sizes:
    """The sizes of a site, given those of one iteration."""
    scans = list(zip(site.loops, site.varying, strict=True))
    own = math.prod(length for length, is_own in scans if is_own)
    shared = math.prod(length for length, is_own in scans if not is_own)
    return one._replace(groups=own * one.groups, positions=shared * one.positions)


def matrices_of_factors(site: Site, act: Array, out_grad: Array, precision: Any) -> Array:
    """The gradient of one example with respect to the weight, summed over the iterations."""
    return laid_out(site, outer(*rule_of(site).factors(site, act, out_grad), precision))


def sum_of_factors(site: Site, weight: Array, act: Array, out_grad: Array) -> Array:
    """The sum of the gradients of a batch, to which an example is so many positions more."""
    shared = len(site.loops) - sum(site.varying)

    def one(act: Array, out_grad: Array) -> Array:
        factors = functools.partial(rule_of(site).factors, site)
        u, v = map(_joined, jax.vmap(factors, in_axes=shared)(act, out_grad))
        return laid_out(site, outer(u, v, precision_of(site)))

    for place, axis in reversed(list(enumerate(a for a, own in enumerate(site.varying) if own))):
        one = jax.vmap(one, in_axes=axis - place)
    return one(act, out_grad)


def sum_by_transpose(site: Site, weight: Array, act: Array, out_grad: Array) -> Array:
    """The same by the transpose of the primitive itself."""
    apply = jax.vmap(site.apply, in_axes=(None, 0))
    for own in reversed(site.varying):
        apply = jax.vmap(apply, in_axes=(0 if own else None, 0))
    (grad,) = jax.linear_transpose(lambda weight: apply(weight, act), weight)(out_grad)
    return grad


def laid_out(site: Site, product: Array) -> Array:
    """Matrices `[g, d, p]` as an array of the weight's shape."""
    shape, (groups, left, right) = site.kernel.shape, rule_of(site).layout(site)
    order = (*groups, *left, *right)
    shaped = lax.reshape(product, [shape[d] for d in order])
    return lax.transpose(shaped, [order.index(d) for d in range(len(shape))])


class Rule(NamedTuple):
    """What the engine knows of a primitive at which a weight meets an example value.

    Arrays are those of one example, `[*scans, *shape]`, with the scans that the weight has no slice
    of its own for; in `total` they are `[*scans, batch, *shape]`, with all scans.

    Attributes:
      activation: `(eqn, weight, examples) -> position`: given the positions of the weight and of
        the example values among the operands, that of the activation; None if the rule does not
        hold for this equation.
      factors: `(site, act, out_grad) -> Factors`.
      layout: `site -> Layout`, the sides of the weight's matrices.
      sizes: `site -> Sizes`, the cost of the forms.
      matrices: `(site, act, out_grad, precision) -> array` of the weight's shape, the gradient.
      total: `(site, weight, act, out_grad) -> array`, the sum of the gradients of a batch.
      contracted: `site -> pairs` of a dimension of the activation and the one of the weight that
        it is summed over with; the sum may then be made a part of it at a time.
      aligned: whether the factors of several sites can be products of one sum.
    """

    activation: Callable[[Any, int, Sequence[int]], int | None]
    factors: Callable[[Site, Array, Array], Factors]
    layout: Callable[[Site], Layout]
    sizes: Callable[[Site], Sizes] = sizes_of_layout
    matrices: Callable[[Site, Array, Array, Any], Array] = matrices_of_factors
    total: Callable[[Site, Array, Array, Array], Array] = sum_of_factors
    contracted: Callable[[Site], list[tuple[int, int]]] = lambda site: []
    aligned: bool = True


RULES: dict[core.Primitive, Rule] = {}


def rule_of(site: Site) -> Rule:
    """The rule of a site."""
    return RULES[site.eqn.primitive]


def precision_of(site: Site) -> Any:
    """The precision that the loss asks of a product, for that of activation and gradient."""
    given = site.eqn.params.get("precision")
    if isinstance(given, tuple):
        return given[site.act_position], given[site.position]
    return None if given is None else EXACT  # of an algorithm no other product need be capable


def rest(ndim: int, *taken: Sequence[int]) -> tuple[int, ...]:
    """The dimensions that are left."""
    used = {d for dims in taken for d in dims}
    return tuple(d for d in range(ndim) if d not in used)


def _joined(factor: Factor) -> Factor:
    """The factors of all examples, `[batch, g, t, d]`, as those of one."""
    if isinstance(factor, Ids):
        return Ids(factor.positions.reshape(factor.positions.size), factor.size)
    assert isinstance(factor, Array)  # patches are summed by the transpose of the convolution
    batch, groups, positions, features = factor.shape
    return lax.reshape(lax.transpose(factor, (1, 0, 2, 3)), (groups, batch * positions, features))
