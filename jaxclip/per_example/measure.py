"""Per-example norms from the activations and gradients of a backward pass."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .. import norms
from ..devices import spread_out
from . import gram
from .backward import Backward, Grads, Kept
from .chunks import over_batch
from .devices import axes_of
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
    gradient = _gradients(backward, bound)

    def one(i: int, kept: Kept) -> tuple[Grads, dict[int, gram.Square]]:
        plan = backward.plans[i]
        if plan.form == "gram":
            parts = _of_pairs(gram.squared, backward.program, plan, kept, bound)
            return {}, {plan.parameters[0]: gram.Square(*map(sum_of_all, parts))}
        grads = gradient(i, kept)
        slack = _slack(plan, kept) if bound else None
        squares = {}
        for name, grad in _named(plan, grads):
            value = _raised_square(grad, slack) if bound else sum_of_all(_abs2(grad))
            squares[name] = gram.Square(value, lax.full_like(value, 0))
        return grads if plan.keep else {}, squares

    gradients: list[Grads] = []
    found: dict[int, gram.Square] = {}
    results = _of_plans(backward, one, range(len(backward.plans)))
    for (grads, squares), scale in zip(results, _scales(backward), strict=True):
        gradients.append(grads)
        for name, square in squares.items():
            if scale is not None:
                square = gram.Square(*(part * jnp.square(scale) for part in square))
            if name in found:
                square = gram.Square(*map(operator.add, found[name], square))
            found[name] = square
    return gradients, found


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
    program, plans, size = backward.program, backward.plans, backward.size
    gradient, scales = _gradients(backward, bound), _scales(backward)

    def again(i: int, kept: Kept) -> list[Array]:
        rows = [grad[None] for _, grad in _named(plans[i], gradient(i, kept))]
        slack = _slack(plans[i], kept) if bound else None
        return [n[0] if slack is None else n[0] + slack for n in _norms_of(rows, 1, bound)]

    def by_gram(i: int, kept: Kept) -> gram.Square:
        return _of_pairs(gram.norm, program, plans[i], kept, bound)

    def by_sum(i: int, kept: Kept) -> Array:
        return _of_pairs(gram.norm_of_sum, program, plans[i], kept, bound)

    def scaled(i: int, x: Array) -> Array:
        scale = scales[i]
        return x if scale is None else x * scale

    grams = [i for i, plan in enumerate(plans) if plan.form == "gram"]
    others = [i for i, plan in enumerate(plans) if plan.form != "gram" and not plan.keep]
    fixed: list[list[Array]] = [[] for _ in range(count)]
    for i, (plan, grads) in enumerate(zip(plans, gradients, strict=True)):
        named = _named(plan, grads)
        for (name, _), norm in zip(
            named, _norms_of([grad for _, grad in named], size, bound), strict=True
        ):
            fixed[of[name]].append(scaled(i, norm))
    for i, values in zip(others, _of_plans(backward, again, others), strict=True):
        for name, norm in zip(_names(plans[i]), values, strict=True):
            fixed[of[name]].append(scaled(i, norm))

    def joined(own: Sequence[Array]) -> list[Array]:
        """The norms of each block, given those of the plans in Gram form."""
        blocks = [list(block) for block in fixed]
        for i, value in zip(grams, own, strict=True):
            blocks[of[plans[i].parameters[0]]].append(_rows(scaled(i, value)))
        values = bound_of_norms(blocks, size) if bound else _l2(blocks)
        dtype = accumulator(*(value.dtype for value in values))
        return [
            value.astype(dtype) if block else jnp.zeros(size, dtype)
            for value, block in zip(values, blocks, strict=True)
        ]

    if not grams:
        return joined([])
    own = _of_plans(backward, by_gram, grams)
    values = joined([square.value for square in own])
    cancelling = [
        i for i in grams if sum(rule_of(s).sizes(s).positions for s in plans[i].sites) > 1
    ]
    if not cancelling:
        return values
    trusted = [jnp.ones(size, jnp.bool_) for _ in range(count)]
    for i, (_, doubt) in zip(grams, own, strict=True):
        block = of[plans[i].parameters[0]]
        doubt = scaled(i, doubt)
        largest = jnp.max(doubt, range(1, doubt.ndim)) * (len(grams) * doubt[0].size) ** 0.5
        trusted[block] &= ~(largest > values[block])

    def from_sums() -> list[Array]:
        summed = dict(zip(cancelling, _of_plans(backward, by_sum, cancelling), strict=True))
        better = joined([summed.get(i, s.value) for i, s in zip(grams, own, strict=True)])
        return [jnp.where(t, v, b) for t, v, b in zip(trusted, values, better, strict=True)]

    all_trusted = functools.reduce(operator.and_, [jnp.all(t) for t in trusted])
    return lax.cond(all_trusted, lambda: values, from_sums)


def _names(plan: Plan) -> Sequence[int]:
    """What the squares of a plan are filed under."""
    return plan.parameters[:1] if plan.at_weight else plan.parameters


def _named(plan: Plan, grads: Grads) -> list[tuple[int, Array]]:
    """The gradients of a plan, if there are any, by the parameters that they are filed under."""
    if not grads:
        return []
    return list(zip(_names(plan), grads.values(), strict=True))


def _rows(x: Array) -> Array:
    """An array of examples as one of rows."""
    return x.reshape(x.shape[0], -1)


def _norms_of(arrays: Sequence[Array], size: int, bound: bool) -> list[Array]:
    """The norms `[size]` of arrays `[size, *shape]`, over the whole range of their dtypes."""
    alone = [[x] for x in arrays]
    return bound_of_norms(alone, size) if bound else _l2(alone)


def _scales(backward: Backward) -> list[Array | None]:
    """The number by which the gradients of a plan's single weight are multiplied, if there is one.

    It is what the way back makes of ones.
    """
    program, plans, arrays, _ = backward
    scales: list[Array | None] = []
    for plan in plans:
        views = [program.values[slot].view for slot in plan.weights]
        if not plan.at_weight or not any(view is not None and view.scaled for view in views):
            scales.append(None)
            continue
        ones = {
            slot: spread_out(jnp.ones_like(arrays.weights[slot]), axes_of(arrays.weights[slot]))
            for slot in plan.weights
        }
        back = way_back(program, plan.parameters, plan.weights, arrays.parameters)(ones)
        scales.append(functools.reduce(jnp.maximum, [jnp.max(jnp.abs(g)) for g in back.values()]))
    return scales


def _of_plans(backward: Backward, one: Callable, indices: Sequence[int]) -> list[Any]:
    """Applies `one(plan's index, kept)` to every example, for each of some plans."""
    program, plans, (_, _, kept, _), _ = backward
    axes = (
        {site.act: len(site.loops) for site in program.sites},
        {site.number: len(site.loops) for site in program.sites},
        {slot: sum(program.values[slot].varying) for slot in program.lifted},
    )
    together = [i for i in indices if plans[i].chunk >= backward.size]

    def run(which: Sequence[int], chunk: int) -> list[Any]:
        needed = [_needed(plans[i]) for i in which]
        keys = [dict.fromkeys(key for each in needed for key in each[field]) for field in range(3)]

        def some(tree: tuple[dict, dict, dict]) -> tuple:
            return tuple({k: part[k] for k in own} for part, own in zip(tree, keys, strict=True))

        return over_batch(
            lambda kept: [one(i, Kept(*kept)) for i in which],
            some(axes),
            some(kept),
            backward.size,
            chunk,
        )

    found = dict(zip(together, run(together, backward.size), strict=True)) if together else {}
    for i in indices:
        if i not in found:
            (found[i],) = run([i], plans[i].chunk)
    return [found[i] for i in indices]


def _needed(plan: Plan) -> tuple[list[Any], list[Any], list[Any]]:
    """What a plan needs of that which is kept, by the fields of `Kept`."""
    sites = plan.sites
    return [site.act for site in sites], [site.number for site in sites], list(plan.lifted)


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

    def gradient(i: int, kept: Kept) -> Grads:
        plan, back, found = plans[i], backs[i], {}
        for slot in plan.lifted:
            found[slot] = wide(kept.lifted[slot])
        for site in plan.sites:
            precision = EXACT if exact else precision_of(site)

            def apply(
                act: Array, out: Array, site: Site = site, precision: Any = precision
            ) -> Array:
                return rule_of(site).matrices(site, act, out, precision)

            grad = _over_own_loops(apply, site, kept.acts[site.act], kept.outs[site.number])
            found[site.weight] = found[site.weight] + grad if site.weight in found else grad
        if back is None:
            return found
        return {n: wide(g) for n, g in back(found).items()}

    return gradient


def _of_pairs(of: Callable, program: Program, plan: Plan, kept: Kept, bound: bool) -> Any:
    """Applies a function to the factors of all sites of a plan in Gram form."""
    acts, outs = kept.acts, kept.outs
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


def _slack(plan: Plan, kept: Kept) -> Array | None:
    """How much shorter the matrices of a plan can have become by rounding, in sum."""
    if plan.keep or not plan.sites:
        return None  # what is measured is what is summed
    parts = [
        _over_own_loops(
            lambda act, out, site=site: gram.slack_of_any([rule_of(site).factors(site, act, out)]),
            site,
            kept.acts[site.act],
            kept.outs[site.number],
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


def _abs2(x: Array) -> Array:
    # Of `lax`, here and elsewhere, what runs once for every parameter: it is traced several times
    # faster than the same of `jax.numpy`.
    return lax.real(lax.mul(x, lax.conj(x))) if jnp.iscomplexobj(x) else lax.mul(x, x)
