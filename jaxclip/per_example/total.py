"""The sum of the clipped gradients: one contraction a site, without a second backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .backward import Backward, Grads
from .products import is_dense, wide
from .program import ParamIndex, Site, Slot
from .rules import rule_of
from .run import way_back


def total(
    backward: Backward,
    gradients: Sequence[Grads],
    factors: Sequence[Array],
    of: Sequence[int],
    left_out: Array,
    all_finite: Array,
) -> list[Array]:
    """The sum over the examples of their gradients, each times its factor.

    Args:
      backward: what the backward pass left.
      gradients: for each plan those that it keeps, empty if it does not.
      factors: `[batch]` for each block.
      of: the block of each parameter.
      left_out: bool[batch], the examples of which nothing enters, whatever they hold.
      all_finite: whether nothing that the examples hold is nan or infinite.
    """
    program, plans, (parameters, weights, kept, _), _ = backward

    def scaled(block: int, x: Array, axis: int) -> Array:
        # In float32 at least, up to the sum: rounded to a narrower dtype, an example would be
        # longer than its limit, or, below the smallest number, nothing.
        x = wide(x)
        product = lax.mul(_along(factors[block], axis, x), x)
        return lax.select(_along(left_out, axis, x), lax.full_like(x, 0), product)

    found: dict[ParamIndex, Array] = {}
    at_weights: dict[int, dict[Slot, Array]] = {}
    uses: list[tuple[int, Site, Array]] = []
    for plan, own in zip(plans, gradients, strict=True):
        if own and not plan.at_weight:
            for i, grad in own.items():
                _add(found, ParamIndex(i), _summed(scaled(of[i], grad, 0), 0))
            continue
        # What several blocks make a weight of together is summed for each with its own factors.
        for block in dict.fromkeys(of[i] for i in plan.parameters):
            sums = at_weights.setdefault(block, {})
            for slot, grad in own.items():
                _add(sums, Slot(slot), _summed(scaled(block, grad, 0), 0))
            if own:
                continue
            for slot in plan.lifted:
                axis = sum(program.values[slot].varying)
                _add(sums, slot, _summed(scaled(block, kept.lifted[slot], axis), axis))
            for site in plan.sites:
                out = scaled(block, kept.outs[site.number], len(site.loops))
                uses.append((block, site, out))

    def of_use(site: Site, out: Array, by: Callable) -> Array:
        return by(site, weights[site.weight], kept.acts[site.act], out, left_out)

    in_parts = [use for use in uses if _in_parts(use[1], kept.acts[use[1].act])]
    if in_parts:
        sums = lax.cond(
            all_finite,
            lambda: [of_use(site, out, _contracted) for _, site, out in in_parts],
            lambda: [of_use(site, out, _contracted_in_parts) for _, site, out in in_parts],
        )
        for (block, site, _), grad in zip(in_parts, sums, strict=True):
            _add(at_weights[block], site.weight, grad)
    for block, site, out in uses:
        if not _in_parts(site, kept.acts[site.act]):
            _add(at_weights[block], site.weight, of_use(site, out, _contracted_cleaned))
    for block, grads in at_weights.items():
        sources = frozenset().union(*(program.values[slot].sources for slot in grads))
        which = sorted(i for i in sources if of[i] == block)
        for i, grad in way_back(program, which, tuple(grads), parameters)(grads).items():
            _add(found, i, grad)
    return [
        found[ParamIndex(i)] if ParamIndex(i) in found else jnp.zeros_like(p)
        for i, p in enumerate(parameters)
    ]


def _add(sums: dict, key: Any, x: Array) -> None:
    sums[key] = sums[key] + x if key in sums else x


def _in_parts(site: Site, act: Array) -> bool:
    """Whether a sum can be made from a part of the features of an activation at a time."""
    return is_dense(act) and bool(rule_of(site).contracted(site))


def _contracted(site: Site, weight: Array, act: Array, out: Array, left_out: Array) -> Array:
    """The gradient of a batch with respect to the weight of a site."""
    act = wide(act) if is_dense(act) else act
    return rule_of(site).total(site, wide(weight), act, out)


def _contracted_cleaned(
    site: Site, weight: Array, act: Array, out: Array, left_out: Array
) -> Array:
    """As `_contracted`, where the activation of an example that is left out may be nan.

    No factor of 0 removes a nan: it has to be replaced. A convolution does so always, since the CPU
    takes several times as long for one within a `lax.cond`.
    """
    if is_dense(act):
        bad = _along(left_out, len(site.loops), act)
        act = lax.select(bad, lax.full_like(act, 0), act)
    return _contracted(site, weight, act, out, left_out)


def _contracted_in_parts(
    site: Site, weight: Array, act: Array, out: Array, left_out: Array
) -> Array:
    """As `_contracted_cleaned`, a part of the features at a time.

    So the copies, which are hardly ever made but always allocated, take little memory.
    """
    pairs = rule_of(site).contracted(site)
    in_act, in_weight = pairs[0][0] + len(site.loops) + 1, pairs[0][1] + sum(site.varying)
    size = act.shape[in_act]
    count = max(n for n in range(1, 65) if size % n == 0)
    some = lax.slice_in_dim(weight, 0, size // count, axis=in_weight)

    def part(start: Array) -> Array:
        features = lax.dynamic_slice_in_dim(act, start, size // count, in_act)
        return _contracted_cleaned(site, some, features, out, left_out)

    parts = lax.map(part, jnp.arange(count, dtype=jnp.int32) * (size // count))
    return jnp.moveaxis(parts, 0, in_weight).reshape(weight.shape)


def _summed(x: Array, axis: int) -> Array:
    return lax.reduce_sum(wide(x), (axis,))


def _along(of_examples: Array, axis: int, x: Array) -> Array:
    """Repeats what there is one of for each example to the shape of an array of examples."""
    dtype = x.dtype if of_examples.dtype != jnp.bool_ else of_examples.dtype
    return lax.broadcast_in_dim(lax.convert_element_type(of_examples, dtype), x.shape, (axis,))
