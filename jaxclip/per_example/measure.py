"""The norms of every example's gradient, and their scaled sum, from what the backward pass left."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .. import norms
from . import convolution, rules
from .forms import Plan, sides_of
from .products import accumulator, gram, is_dense, wide
from .products import total as sum_of_all
from .program import Program, Site
from .run import way_back

Grads = dict[int, Array]


class Kept(NamedTuple):
    """What the backward pass of a batch left.

    Attributes:
      acts: the activation of each site, by slot, `[*loops, batch, *shape]`.
      outs: the gradient with respect to the output of each site, by index, in the same form.
      lifted: that with respect to each lifted weight, by slot, `[*loops, batch, *shape]`.
    """

    acts: dict[int, Array]
    outs: dict[int, Array]
    lifted: dict[int, Array]


def measured(
    program: Program, plans: Sequence[Plan], parameters: Sequence[Array], kept: Kept
) -> tuple[list[Grads], dict[int, Array]]:
    """The squared norm of every example's gradient, and what of the gradients is kept.

    Returns:
      For each plan the gradients that it keeps, `[batch, *shape]`, with respect to the single
      weight if the plan stops there, else to each parameter; and for each parameter the squares,
      `[batch]`.
    """
    if not plans:
        return [], {}
    gradient = _gradients(program, plans, parameters)

    def one(acts: Mapping, outs: Mapping, lifted: Mapping) -> tuple[list[Grads], dict[int, Array]]:
        made: list[Grads] = []
        squares: dict[int, Array] = {}
        for i, plan in enumerate(plans):
            if plan.form == "gram":
                value = _gram_squared(program, plan, acts, outs)
                squares[plan.parameters[0]] = lax.max(value, lax.full_like(value, 0))
                made.append({})
                continue
            grads = gradient(i, acts, outs, lifted)
            names = plan.parameters if plan.at_weight else grads
            for name, grad in zip(names, grads.values(), strict=True):
                squares[name] = sum_of_all(_abs2(grad))
            made.append(grads if plan.keep else {})
        return made, squares

    return _over_batch(program, one, kept)


def safe_norms(
    program: Program,
    plans: Sequence[Plan],
    parameters: Sequence[Array],
    kept: Kept,
    made: Sequence[Grads],
    of: Sequence[int],
    count: int,
    size: int,
) -> list[Array]:
    """The norms `[batch]` of `count` blocks where squares are out of range.

    Args:
      program: the traced loss.
      plans: for all parameters.
      parameters: their values.
      kept: what the backward pass left.
      made: as `measured` returns it.
      of: the block of each parameter.
      count: the number of blocks.
      size: the number of examples.
    """
    gradient = _gradients(program, plans, parameters)

    def one(acts: Mapping, outs: Mapping, lifted: Mapping) -> list[Grads]:
        return [
            {plan.parameters[0]: _gram_norm(program, plan, acts, outs)}
            if plan.form == "gram"
            else {}
            if plan.keep
            else gradient(i, acts, outs, lifted)
            for i, plan in enumerate(plans)
        ]

    blocks: list[list[Array]] = [[] for _ in range(count)]
    again = _over_batch(program, one, kept) if plans else []
    for plan, old, new in zip(plans, made, again, strict=True):
        grads = old or new
        names = plan.parameters if plan.at_weight else grads
        for name, grad in zip(names, grads.values(), strict=True):
            blocks[of[name]].append(grad)
    values = norms.l2(blocks, [(0,) for _ in blocks])
    wide = accumulator(*(value.dtype for value in values))
    return [
        value.astype(wide) if block else jnp.zeros(size, wide)
        for value, block in zip(values, blocks, strict=True)
    ]


def _gradients(program: Program, plans: Sequence[Plan], parameters: Sequence[Array]) -> Any:
    """The gradients of one example by the plan's index."""
    backs = [
        None
        if plan.at_weight or plan.form == "gram"
        else way_back(program, plan.parameters, plan.weights, parameters)
        for plan in plans
    ]

    def gradient(i: int, acts: Mapping, outs: Mapping, lifted: Mapping) -> Grads:
        plan, back, found = plans[i], backs[i], {}
        for slot in plan.lifted:
            found[slot] = wide(lifted[slot])
        for site in plan.sites:
            grad = _over_own_loops(rules.matrices, site, acts[site.act], outs[site.number])
            found[site.weight] = found[site.weight] + grad if site.weight in found else grad
        if back is None:
            return found
        return {n: wide(g) for n, g in back(found).items()}

    return gradient


def _gram_squared(program: Program, plan: Plan, acts: Mapping, outs: Mapping) -> Array:
    if len(plan.sites) == 1:
        (site,) = plan.sites
        squared = convolution.squared if rules.is_convolution(site) else _self_product
        return sum_of_all(_over_own_loops(squared, site, acts[site.act], outs[site.number]))
    first = sides_of(program, plan.sites[0])
    pairs = []
    for site in plan.sites:
        u, v = rules.factors(site, acts[site.act], outs[site.number])
        pairs.append((u, v) if sides_of(program, site) == first else (v, u))
    products = [
        (1 if i == j else 2) * _product(u, w, v, x)
        for i, (u, v) in enumerate(pairs)
        for j, (w, x) in enumerate(pairs[: i + 1])
    ]
    return functools.reduce(operator.add, products)


def _gram_norm(program: Program, plan: Plan, acts: Mapping, outs: Mapping) -> Array:
    # The form is linear in the output's gradient, and in the activation unless that is an index.
    own_acts = {site.act: acts[site.act] for site in plan.sites}
    own_outs = {site.number: outs[site.number] for site in plan.sites}
    if not all(is_dense(act) for act in own_acts.values()):
        scaled_acts, size = own_acts, jnp.ones((), jnp.float32)
    else:
        scaled_acts, size = _scaled(own_acts)
    scaled_outs, out_size = _scaled(own_outs)
    value = _gram_squared(program, plan, scaled_acts, scaled_outs)
    root = jnp.sqrt(jnp.maximum(value, 0))
    return size.astype(root.dtype) * (out_size.astype(root.dtype) * root)


def _self_product(site: Site, act: Array, out: Array) -> Array:
    u, v = rules.factors(site, act, out)
    return _product(u, u, v, v)


def _product(u: Any, w: Any, v: Any, x: Any) -> Array:
    left, right = gram(u, w), gram(v, x)
    dtype = accumulator(left.dtype, right.dtype)
    return sum_of_all(lax.mul(left.astype(dtype), right.astype(dtype)))


def _over_own_loops(rule: Any, site: Site, act: Array, out: Array) -> Array:
    """Applies a rule to each iteration that has a slice of the weight to itself."""
    apply = functools.partial(rule, site)
    axes = [axis for axis, own in enumerate(site.varying) if own]
    for place, axis in reversed(list(enumerate(axes))):
        apply = jax.vmap(apply, in_axes=axis - place)
    return apply(act, out)


def _over_batch(program: Program, one: Any, kept: Kept) -> Any:
    acts = {site.act: len(site.loops) for site in program.sites}
    outs = {site.number: len(site.loops) for site in program.sites}
    lifted = {slot: sum(program.values[slot].varying) for slot in program.lifted}
    return jax.vmap(one, in_axes=(acts, outs, lifted))(*kept)


def _scaled(tree: Mapping[int, Array]) -> tuple[dict[int, Array], Array]:
    """Divides by the largest entry."""
    dtype = accumulator(*(x.dtype for x in tree.values()))
    sizes = [
        lax.convert_element_type(lax.reduce_max(lax.abs(x), tuple(range(x.ndim))), dtype)
        for x in tree.values()
        if x.size
    ]
    size = functools.reduce(lax.max, sizes, jnp.zeros((), dtype))
    size = lax.select((size > 0) & lax.is_finite(size), size, lax.full_like(size, 1))
    divisors = {
        key: lax.broadcast(lax.convert_element_type(size, x.dtype), x.shape)
        for key, x in tree.items()
    }
    return {key: lax.div(x, divisors[key]) for key, x in tree.items()}, size


def _abs2(x: Array) -> Array:
    # Of `lax`, here and elsewhere, what runs once for every parameter: it is traced several times
    # faster than the same of `jax.numpy`.
    return lax.real(lax.mul(x, lax.conj(x))) if jnp.iscomplexobj(x) else lax.mul(x, x)
