"""Per-example norms from the activations and gradients of a backward pass."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .. import norms
from . import gram
from .backward import Backward, Grads, Kept
from .forms import Plan, sides_of
from .products import EXACT, accumulator, wide
from .products import total as sum_of_all
from .program import Program, Site
from .rounding import SPARE, bound_of_norms, gamma, staged
from .rules import precision_of, rule_of
from .run import way_back


def measured(backward: Backward, bound: bool) -> tuple[list[Grads], dict[int, gram.Square]]:
    """The squared norm of every example's gradient, and what of the gradients is kept.

    Returns:
      For each plan the gradients that it keeps, `[batch, *shape]`, with respect to the single
      weight if the plan stops there, else to each parameter; and for each parameter the squares,
      `[batch]`.
    """
    program, plans, arrays, _ = backward
    if not plans:
        return [], {}
    gradient = _gradients(backward, bound)

    def one(
        acts: Mapping, outs: Mapping, lifted: Mapping
    ) -> tuple[list[Grads], dict[int, gram.Square]]:
        gradients: list[Grads] = []
        squares: dict[int, gram.Square] = {}
        for i, plan in enumerate(plans):
            if plan.form == "gram":
                parts = _of_pairs(gram.squared, program, plan, acts, outs, bound)
                squares[plan.parameters[0]] = gram.Square(*map(sum_of_all, parts))
                gradients.append({})
                continue
            grads = gradient(i, acts, outs, lifted)
            names = plan.parameters if plan.at_weight else grads
            slack = _slack(plan, acts, outs) if bound else None
            for name, grad in zip(names, grads.values(), strict=True):
                value = _raised_square(grad, slack) if bound else sum_of_all(_abs2(grad))
                squares[name] = gram.Square(value, lax.full_like(value, 0))
            gradients.append(grads if plan.keep else {})
        return gradients, squares

    return _over_batch(program, one, arrays.kept)


def safe_norms(
    backward: Backward, gradients: Sequence[Grads], of: Sequence[int], count: int, bound: bool
) -> list[Array]:
    """The norms `[batch]` of `count` blocks where squares are out of range, or positions cancel.

    Args:
      backward: what the backward pass left.
      gradients: those that are kept, as `measured` returns them.
      of: the block of each parameter.
      count: the number of blocks.
      bound: whether norms are raised by all that rounding may have taken from them.
    """
    program, plans, (_, _, kept, _), _ = backward
    size, gradient = backward.size, _gradients(backward, bound)

    def rest(acts: Mapping, outs: Mapping, lifted: Mapping) -> list[tuple[Grads, Array | None]]:
        return [
            (
                {} if plan.keep or plan.form == "gram" else gradient(i, acts, outs, lifted),
                _slack(plan, acts, outs) if bound and plan.form != "gram" else None,
            )
            for i, plan in enumerate(plans)
        ]

    def by_gram(acts: Mapping, outs: Mapping, lifted: Mapping) -> list[gram.Square]:
        return [_of_pairs(gram.norm, program, plan, acts, outs, bound) for plan in grams]

    def by_sum(acts: Mapping, outs: Mapping, lifted: Mapping) -> list[Array]:
        return [
            _of_pairs(gram.norm_of_sum, program, plan, acts, outs, bound) for plan in cancelling
        ]

    grams = [plan for plan in plans if plan.form == "gram"]
    cancelling = [
        plan for plan in grams if sum(rule_of(s).sizes(s).positions for s in plan.sites) > 1
    ]
    others: list[list[Array]] = [[] for _ in range(count)]
    slacks: list[list[Array]] = [[] for _ in range(count)]
    again = _over_batch(program, rest, kept) if plans else []
    for plan, old, (new, slack) in zip(plans, gradients, again, strict=True):
        grads = old or new
        names = plan.parameters if plan.at_weight and grads else grads
        for name, grad in zip(names, grads.values(), strict=True):
            others[of[name]].append(grad)
            if slack is not None:
                slacks[of[name]].append(slack)

    def joined(own: Sequence[Array]) -> list[Array]:
        """The norms of each block, given those of the parameters in Gram form."""
        blocks = [list(block) for block in others]
        for plan, value in zip(grams, own, strict=True):
            blocks[of[plan.parameters[0]]].append(value)
        values = bound_of_norms(blocks, size) if bound else _l2(blocks)
        lost = bound_of_norms(slacks, size) if bound else [None for _ in blocks]
        dtype = accumulator(*(value.dtype for value in values))
        return [
            jnp.zeros(size, dtype)
            if not block
            else (value if part is None else value + part).astype(dtype)
            for value, part, block in zip(values, lost, blocks, strict=True)
        ]

    if not grams:
        return joined([])
    own = _over_batch(program, by_gram, kept)
    values = joined([square.value for square in own])
    if not cancelling:
        return values
    trusted = [jnp.ones(size, jnp.bool_) for _ in range(count)]
    for plan, (_, doubt) in zip(grams, own, strict=True):
        block = of[plan.parameters[0]]
        largest = jnp.max(doubt, range(1, doubt.ndim)) * (len(grams) * doubt[0].size) ** 0.5
        trusted[block] &= ~(largest > values[block])

    def from_sums() -> list[Array]:
        summed = {
            plan.parameters: value
            for plan, value in zip(cancelling, _over_batch(program, by_sum, kept), strict=True)
        }
        better = joined(
            [summed.get(plan.parameters, s.value) for plan, s in zip(grams, own, strict=True)]
        )
        return [jnp.where(t, v, b) for t, v, b in zip(trusted, values, better, strict=True)]

    all_trusted = functools.reduce(operator.and_, [jnp.all(t) for t in trusted])
    return lax.cond(all_trusted, lambda: values, from_sums)


def _l2(blocks: Sequence[Sequence[Array]]) -> list[Array]:
    return norms.l2(blocks, [(0,) for _ in blocks])


def _gradients(backward: Backward, exact: bool) -> Any:
    """The gradients of one example by the plan's index."""
    program, plans, (parameters, *_), _ = backward
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
            precision = EXACT if exact else precision_of(site)

            def apply(
                act: Array, out: Array, site: Site = site, precision: Any = precision
            ) -> Array:
                return rule_of(site).matrices(site, act, out, precision)

            grad = _over_own_loops(apply, site, acts[site.act], outs[site.number])
            found[site.weight] = found[site.weight] + grad if site.weight in found else grad
        if back is None:
            return found
        return {n: wide(g) for n, g in back(found).items()}

    return gradient


def _of_pairs(
    of: Callable, program: Program, plan: Plan, acts: Mapping, outs: Mapping, bound: bool
) -> Any:
    """Applies a function to the factors of all sites of a plan in Gram form."""
    if len(plan.sites) == 1:
        (site,) = plan.sites
        return _over_own_loops(
            lambda act, out: of([tuple(rule_of(site).factors(site, act, out))], bound),
            site,
            acts[site.act],
            outs[site.number],
        )
    first = sides_of(program, plan.sites[0])
    pairs = []
    for site in plan.sites:
        u, v = rule_of(site).factors(site, acts[site.act], outs[site.number])
        pairs.append((u, v) if sides_of(program, site) == first else (v, u))
    return of(pairs, bound)


def _slack(plan: Plan, acts: Mapping, outs: Mapping) -> Array | None:
    """How much shorter the matrices of a plan can have become by rounding, in sum."""
    if plan.keep or not plan.sites:
        return None  # what is measured is what is summed
    parts = [
        _over_own_loops(
            lambda act, out, site=site: gram.slack_of_any([rule_of(site).factors(site, act, out)]),
            site,
            acts[site.act],
            outs[site.number],
        )
        for site in plan.sites
    ]
    return functools.reduce(operator.add, [sum_of_all(part) for part in parts])


def _raised_square(grad: Array, slack: Array | None) -> Array:
    """A bound of the square of a gradient's norm."""
    value, depth = staged(_abs2(grad))
    root = jnp.sqrt(value) * (1 + gamma(depth + SPARE, value.dtype))
    return jnp.square(root if slack is None else root + slack)


def _over_own_loops(rule: Any, site: Site, act: Array, out: Array) -> Any:
    """Applies a rule to each iteration that has a slice of the weight to itself."""
    axes = [axis for axis, own in enumerate(site.varying) if own]
    for place, axis in reversed(list(enumerate(axes))):
        rule = jax.vmap(rule, in_axes=axis - place)
    return rule(act, out)


def _over_batch(program: Program, one: Any, kept: Kept) -> Any:
    acts = {site.act: len(site.loops) for site in program.sites}
    outs = {site.number: len(site.loops) for site in program.sites}
    lifted = {slot: sum(program.values[slot].varying) for slot in program.lifted}
    return jax.vmap(one, in_axes=(acts, outs, lifted))(*kept)


def _abs2(x: Array) -> Array:
    # Of `lax`, here and elsewhere, what runs once for every parameter: it is traced several times
    # faster than the same of `jax.numpy`.
    return lax.real(lax.mul(x, lax.conj(x))) if jnp.iscomplexobj(x) else lax.mul(x, x)
