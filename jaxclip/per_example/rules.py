r"""The steps whose per-example gradient has a form cheaper than itself.

The gradient of one example with respect to the weight of a *contraction* is a sum of outer products
over the positions $t$ at which the weight was used,

$$g = \sum_t u_t \otimes v_t, \qquad
  \|g\|^2 = \sum_{t,s} \langle u_t, u_s\rangle \langle v_t, v_s\rangle,$$

with $u$ from the activation and $v$ from the gradient with respect to the output. So it is for
`dot_general` in every order of its dimensions, and for a lookup, where $u_t$ is one-hot and only
its index is kept. A convolution is such a sum for every offset in its kernel.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives
from jaxtyping import Array

from . import convolution
from .products import EXACT, Factor, Ids, accumulator, arranged, outer
from .program import Kind, Operand, Site


class Factors(NamedTuple):
    """The outer products of one example: `u[g, t, d]` and `v[g, t, p]`, one matrix a group.

    Attributes:
      u: the left factors.
      v: the right factors.
    """

    u: Factor
    v: Factor


class Layout(NamedTuple):
    """Which dimensions of a weight make up the groups and the two sides of its matrices."""

    groups: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]


def activation(
    eqn: Any,
    operands: Sequence[Operand],
    weights: Sequence[int],
    kind: Callable[[Operand], Kind],
) -> int | None:
    """Which operand of a step is its activation, if there is a rule for the step."""
    examples = [i for i, operand in enumerate(operands) if kind(operand) == Kind.EXAMPLE]
    if len(weights) != 1 or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return None
    weight = eqn.invars[weights[0]].aval
    if 0 in (weight.size, eqn.outvars[0].aval.size):
        return None
    if eqn.primitive is primitives.dot_general_p and len(examples) == 1:
        real = all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in eqn.invars)
        return examples[0] if real else None
    if eqn.primitive is primitives.conv_general_dilated_p:
        ruled = weights == [1] and examples == [0] and eqn.params["batch_group_count"] == 1
        return 0 if ruled else None
    if eqn.primitive is primitives.gather_p:
        ruled = weights == [0] and examples == [1] and _is_lookup(eqn.params, weight.shape)
        return 1 if ruled else None
    if eqn.primitive is primitives.dynamic_slice_p and weights == [0] and len(examples) == 1:
        sizes = eqn.params["slice_sizes"]
        cut = [axis for axis, size in enumerate(sizes) if size != weight.shape[axis]]
        return examples[0] if cut == [examples[0] - 1] and sizes[cut[0]] == 1 else None
    return None


def is_convolution(site: Site) -> bool:
    """Whether a site is a convolution; its factors depend on the offset in the kernel."""
    return site.eqn.primitive is primitives.conv_general_dilated_p


def is_dot(site: Site) -> bool:
    """Whether a site is a `dot_general`."""
    return site.eqn.primitive is primitives.dot_general_p


def layout(site: Site) -> Layout:
    """The matrices that a weight is made of, without the dimensions of its loops."""
    params, ndim = site.eqn.params, site.eqn.invars[site.position].aval.ndim
    if is_dot(site):
        batch = params["dimension_numbers"][1][site.position]
        left = tuple(of_weight for _, of_weight in contracted_dims(site))
        return Layout(tuple(batch), left, _rest(ndim, left, batch))
    axis = 0 if site.eqn.primitive is primitives.gather_p else site.act_position - 1
    return Layout((), (axis,), _rest(ndim, (axis,)))


def contracted_dims(site: Site) -> list[tuple[int, int]]:
    """The dimensions of the activation that are summed over with one of the weight, and that one.

    They come in the order of the activation, since that is the order in which `lax.dot_general`
    returns them when they are what is left of it.
    """
    if not is_dot(site):
        return []
    contracting, _ = site.eqn.params["dimension_numbers"]
    return sorted(zip(contracting[site.act_position], contracting[site.position], strict=True))


class Sizes(NamedTuple):
    """Groups, positions and the two sides of the matrices of a site, loops included."""

    groups: int
    positions: int
    left: int
    right: int


def sizes(site: Site) -> Sizes:
    """The sizes of a site's factors."""
    shape, out = site.eqn.invars[site.position].aval.shape, site.output
    repeated = math.prod(n for n, own in zip(site.loops, site.varying, strict=True) if not own)
    own = math.prod(n for n, own in zip(site.loops, site.varying, strict=True) if own)
    if is_convolution(site):
        kernel = site.eqn.params["dimension_numbers"].rhs_spec
        groups, features = site.eqn.params["feature_group_count"], shape[kernel[0]]
        left, positions = math.prod(shape) // features, out.size // features
        return Sizes(own * groups, repeated * positions, left, features // groups)
    groups, left, right = (math.prod(shape[d] for d in dims) for dims in layout(site))
    return Sizes(own * groups, repeated * (out.size // (groups * right)), left, right)


def factors(site: Site, act: Array, out_grad: Array) -> Factors:
    """The outer products of one example.

    Args:
      site: a site whose loops have no slice of the weight each.
      act: the activation, `[*loops, *shape]`.
      out_grad: the gradient with respect to the output, `[*loops, *shape]`.

    Returns:
      Its factors; the positions of all iterations follow one another.
    """
    loops = out_grad.ndim - site.output.ndim
    if is_convolution(site):
        return Factors(*convolution.factors(site, act, out_grad))
    if is_dot(site):
        of_act, of_out = _dot_dims(site)
        return Factors(arranged(act, loops, *of_act), arranged(out_grad, loops, *of_out))
    if site.eqn.primitive is primitives.gather_p:
        numbers, index = site.eqn.params["dimension_numbers"], act[..., 0].astype(jnp.int32)
        size = site.eqn.invars[0].aval.shape[0]
        drops = site.eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
        inside = (index >= 0) & (index < size)
        index = jnp.where(inside, index, -1) if drops else jnp.clip(index, 0, size - 1)
        positions = _rest(site.output.ndim, numbers.offset_dims)
        v = arranged(out_grad, loops, (), positions, numbers.offset_dims)
        return Factors(Ids(index.reshape(v.shape[1]), size), v)
    axis = site.act_position - 1
    v = arranged(out_grad, loops, (), (axis,), _rest(site.output.ndim, (axis,)))
    size = site.eqn.invars[0].aval.shape[axis]
    return Factors(Ids(_start(act, size).reshape(v.shape[1]), size), v)


def dot_of_batch(site: Site, act: Array, out_grad: Array) -> Array:
    """The sum over a batch of the gradients at a `dot_general`, in a single one.

    Args:
      site: the `dot_general`.
      act: the activation, `[*loops, batch, *shape]`, or some of the features of it.
      out_grad: the gradient with respect to the output, `[*loops, batch, *shape]`.

    Returns:
      The gradient with respect to the weight; the loops that it has slices for come first.
    """
    batch = len(site.loops)
    own = [axis for axis, is_own in enumerate(site.varying) if is_own]
    shared = [axis for axis in range(batch + 1) if axis not in own]
    of_act, of_out = ([[batch + 1 + d for d in dims] for dims in side] for side in _dot_dims(site))
    dtype = accumulator(act.dtype, out_grad.dtype)
    grad = lax.dot_general(
        lax.convert_element_type(act, dtype),
        lax.convert_element_type(out_grad, dtype),
        (
            ([*shared, *of_act[1]], [*shared, *of_out[1]]),
            ([*own, *of_act[0]], [*own, *of_out[0]]),
        ),
        precision_of(site),
        preferred_element_type=dtype,
    )
    dims = layout(site)
    order = (*dims.groups, *dims.left, *dims.right)
    places = [len(own) + order.index(d) for d in range(len(order))]
    return lax.transpose(grad, [*range(len(own)), *places])


def matrices(site: Site, act: Array, out_grad: Array, precision: Any) -> Array:
    """The gradient of one example with respect to the weight, summed over the iterations."""
    if is_convolution(site):
        return convolution.gradient(site, act, out_grad, precision)
    weight, dims = site.eqn.invars[site.position].aval, layout(site)
    product = outer(*factors(site, act, out_grad), precision)
    order = (*dims.groups, *dims.left, *dims.right)
    shaped = lax.reshape(product, [weight.shape[d] for d in order])
    return lax.transpose(shaped, [order.index(d) for d in range(weight.ndim)])


def precision_of(site: Site) -> Any:
    """The precision that the loss asks of a product, for that of activation and gradient."""
    given = site.eqn.params.get("precision")
    if isinstance(given, tuple):
        return given[site.act_position], given[site.position]
    return None if given is None else EXACT  # of an algorithm no other product need be capable


def _dot_dims(site: Site) -> tuple[tuple, tuple]:
    """The groups, positions and features of the activation and of the output."""
    contracting, batch = site.eqn.params["dimension_numbers"]
    own, other = site.position, site.act_position
    features = tuple(of_act for of_act, _ in contracted_dims(site))
    acting = _rest(site.eqn.invars[other].aval.ndim, features, batch[other])
    free = _rest(site.eqn.invars[own].aval.ndim, contracting[own], batch[own])
    # The output has the batch first, then what is left of the left operand, then of the right one.
    groups = tuple(range(len(batch[0])))
    before = len(groups) + (len(free) if own == 0 else 0)
    act_out = tuple(range(before, before + len(acting)))
    return (batch[other], acting, features), (
        groups,
        act_out,
        _rest(site.output.ndim, groups, act_out),
    )


def _start(index: Array, size: int) -> Array:
    return jnp.clip(index, 0, size - 1).astype(jnp.int32)


def _is_lookup(params: dict[str, Any], shape: tuple[int, ...]) -> bool:
    numbers = params["dimension_numbers"]
    return (
        tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and not numbers.operand_batching_dims
        and tuple(params["slice_sizes"]) == (1, *shape[1:])
    )


def _rest(ndim: int, *taken: Sequence[int]) -> tuple[int, ...]:
    used = {d for dims in taken for d in dims}
    return tuple(d for d in range(ndim) if d not in used)
