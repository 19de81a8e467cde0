"""The sum of the clipped gradients: one contraction a site, without a second backward pass."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .backward import Backward, Grads
from .products import is_dense, wide
from .program import ParamIndex, Site, SiteIndex, Slot
from .rules import rule_of
from .run import way_back


def total(
    backward: Backward,
    gradients: Sequence[Grads],
    factors: Sequence[Array],
    left_out: Array,
    all_finite: Array,
) -> list[Array]:
    """The sum over the examples of their gradients, each times its factor.

    Args:
      backward: what the backward pass left.
      gradients: for each plan those that it keeps, empty if it does not.
      factors: `[batch]` for each parameter.
      left_out: bool[batch], the examples of which nothing enters, whatever they hold.
      all_finite: whether nothing that the examples hold is nan or infinite.
    """
    program, plans, (parameters, weights, kept, _), _ = backward

    def scaled(factor: Array, x: Array, axis: int) -> Array:
        # In float32 at least, up to the sum: rounded to a narrower dtype, an example would be
        # longer than its limit, or, below the smallest number, nothing.
        x = wide(x)
        product = lax.mul(_along(factor, axis, x), x)
        return lax.select(_along(left_out, axis, x), lax.full_like(x, 0), product)

    found: dict[ParamIndex, Array] = {}
    parts: list[tuple[Slot, Array]] = []
    outs: dict[SiteIndex, Array] = {}
    for plan, own in zip(plans, gradients, strict=True):
        factor = factors[plan.parameters[0]]
        if own and plan.at_weight:
            parts += [(Slot(s), _summed(scaled(factor, g, 0), 0)) for s, g in own.items()]
        elif own:
            found |= {ParamIndex(i): _summed(scaled(factors[i], g, 0), 0) for i, g in own.items()}
        else:
            for slot in plan.lifted:
                axis = sum(program.values[slot].varying)
                parts.append((slot, _summed(scaled(factor, kept.lifted[slot], axis), axis)))
            for site in plan.sites:
                outs[site.number] = scaled(factor, kept.outs[site.number], len(site.loops))
    sites = [site for site in program.sites if site.number in outs]
    acts = {site.act: kept.acts[site.act] for site in sites}
    if sites:
        contracted = lax.cond(
            all_finite,
            lambda: [_contracted(s, weights[s.weight], acts[s.act], outs[s.number]) for s in sites],
            lambda: [
                _contracted_without(s, weights[s.weight], acts[s.act], outs[s.number], left_out)
                for s in sites
            ],
        )
        parts += zip((site.weight for site in sites), contracted, strict=True)
    at_weights: dict[Slot, Array] = {}
    for slot, grad in parts:
        at_weights[slot] = at_weights[slot] + grad if slot in at_weights else grad
    indices = [ParamIndex(i) for i in range(len(parameters))]
    rest = [i for i in indices if i not in found]
    if at_weights:
        found |= way_back(program, rest, tuple(at_weights), parameters)(at_weights)
    return [
        found[i].astype(p.dtype) if i in found else jnp.zeros_like(p)
        for i, p in zip(indices, parameters, strict=True)
    ]


def _contracted(site: Site, weight: Array, act: Array, out: Array) -> Array:
    """The gradient of a batch with respect to the weight of a site."""
    act = wide(act) if is_dense(act) else act
    return rule_of(site).total(site, wide(weight), act, out)


def _contracted_without(
    site: Site, weight: Array, act: Array, out: Array, left_out: Array
) -> Array:
    """As `_contracted`, where the activation of an example that is left out may be nan.

    No factor of 0 removes a nan: it has to be replaced. A part of the features at a time, so that
    the copies, which are hardly ever made but always allocated, take little memory.
    """
    if not is_dense(act):
        return _contracted(site, weight, act, out)

    def cleaned(act: Array) -> Array:
        bad = _along(left_out, len(site.loops), act)
        return lax.select(bad, lax.full_like(act, 0), act)

    pairs = rule_of(site).contracted(site)
    if not pairs:
        return _contracted(site, weight, cleaned(act), out)
    in_act, in_weight = pairs[0][0] + len(site.loops) + 1, pairs[0][1] + sum(site.varying)
    size = act.shape[in_act]
    count = max(n for n in range(1, 65) if size % n == 0)
    some = lax.slice_in_dim(weight, 0, size // count, axis=in_weight)

    def part(start: Array) -> Array:
        features = lax.dynamic_slice_in_dim(act, start, size // count, in_act)
        return _contracted(site, some, cleaned(features), out)

    parts = lax.map(part, jnp.arange(count, dtype=jnp.int32) * (size // count))
    return jnp.moveaxis(parts, 0, in_weight).reshape(weight.shape)


def _summed(x: Array, axis: int) -> Array:
    return lax.reduce_sum(wide(x), (axis,))


def _along(of_examples: Array, axis: int, x: Array) -> Array:
    """Repeats what there is one of for each example to the shape of an array of examples."""
    dtype = x.dtype if of_examples.dtype != jnp.bool_ else of_examples.dtype
    return lax.broadcast_in_dim(lax.convert_element_type(of_examples, dtype), x.shape, (axis,))
