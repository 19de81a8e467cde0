"""Running a program: the weights once, then the steps for every example.

A *tap* is added to the output of every site and to every lifted weight. The gradient with respect
to the taps is that with respect to those values, for each example of the batch on its own.
"""

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .products import accumulator, is_dense, wide
from .program import (
    Call,
    Op,
    Operand,
    ParamIndex,
    Program,
    Remat,
    Scan,
    Scope,
    Site,
    SiteIndex,
    Slot,
    Step,
    Use,
    is_slot,
)

Env = dict[Slot, Any]


def weights_of(
    program: Program,
    parameters: Sequence[Any],
    wanted: Sequence[Slot],
    exact: Set[Slot] = frozenset(),
) -> Env:
    """The weights, with the iterations of the scans that they vary over as leading dimensions.

    Args:
      program: the traced loss.
      parameters: their values.
      wanted: the slots of the weights.
      exact: the slots to compute without the casts of the loss, in float32 at least.
    """
    given = dict(zip(program.parameters, parameters, strict=True))
    return _outer(program, program.top, given, dict.fromkeys(wanted), exact)


def way_back(
    program: Program,
    which: Sequence[ParamIndex],
    slots: Sequence[Slot],
    parameters: Sequence[jax.Array],
) -> Callable[[Mapping[Slot, jax.Array]], dict[ParamIndex, jax.Array]]:
    """The function from gradients with respect to weights to those with respect to parameters."""

    def back_from(
        some_slots: Sequence[Slot], some: dict[ParamIndex, jax.Array], exact: Set[Slot]
    ) -> Callable:
        def weights(some: dict[ParamIndex, jax.Array]) -> Env:
            values = [some.get(ParamIndex(i), p) for i, p in enumerate(parameters)]
            return weights_of(program, values, some_slots, exact)

        values, back = jax.vjp(weights, some)
        return lambda grads: back(
            {s: lax.convert_element_type(grads[s], values[s].dtype) for s in some_slots}
        )[0]

    # What only moves entries need not round them to the dtype that the loss casts to.
    exact = frozenset(slot for slot, value in program.values.items() if value.view is not None)
    views = [slot for slot in slots if slot in exact]
    others = [slot for slot in slots if slot not in views]
    backs = [
        back_from(some_slots, {i: of(parameters[i]) for i in which}, some_exact)
        for some_slots, of, some_exact in (
            (views, wide, exact),
            (others, lambda p: p, frozenset()),
        )
        if some_slots
    ]

    def together(grads: Mapping[Slot, jax.Array]) -> dict[ParamIndex, jax.Array]:
        first, *rest = [back(grads) for back in backs]
        return {i: functools.reduce(lax.add, [wide(g[i]) for g in (first, *rest)]) for i in which}

    return together


def batched(
    program: Program,
    weights: Env,
    site_taps: dict[SiteIndex, Any],
    weight_taps: Env,
    example: Sequence,
    zeros: jax.Array,
) -> tuple[Any, tuple[list[Any], Env]]:
    """Runs the steps over a batch.

    Args:
      program: the traced loss.
      weights: by slot.
      site_taps: zeros of the shape of each site's output, `[*loops, batch, *shape]`.
      weight_taps: zeros of the shape of each lifted weight, `[*varying loops, batch, *shape]`.
      example: the leaves of the batch.
      zeros: a zero for each example.

    Returns:
      The losses, the auxiliary outputs, and the activations, `[*loops, batch, *shape]`.
    """
    loops = {site.act: len(site.loops) for site in program.sites}

    def one(
        site_taps: dict[SiteIndex, Any], weight_taps: Env, example: Sequence, zero: jax.Array
    ) -> Any:
        lifted = tap({slot: weights[slot] for slot in weight_taps}, weight_taps)
        tapped = {program.tapped[slot]: value for slot, value in lifted.items()}
        env = _Env(program.top, dict(zip(program.examples, example, strict=True)))
        acts = _steps(program.top.steps, env, {**weights, **tapped}, site_taps, zero)
        results = [env.read(operand, {**weights, **tapped}) for operand in program.results]
        return results[0], results[1:], acts

    site_axes = {site.number: len(site.loops) for site in program.sites}
    weight_axes = {slot: sum(program.values[slot].varying) for slot in weight_taps}
    losses, aux, acts = jax.vmap(
        one, in_axes=(site_axes, weight_axes, 0, 0), out_axes=(0, 0, loops)
    )(site_taps, weight_taps, example, zeros)
    return losses, (aux, acts)


@jax.custom_jvp
def tap(value: Any, zero: Any) -> Any:
    """`value + zero` to the derivative, and `value` to the computation.

    So a tap is never read: no zeros are stored for it, even in a scan, and a lifted weight is not
    repeated for every example.
    """
    return value


@tap.defjvp
def _tap_jvp(primals: tuple, tangents: tuple) -> tuple:
    return primals[0], jax.tree.map(lax.add, *tangents)


class _Env:
    """The values of a scope; those that need no step are computed when they are first read."""

    def __init__(self, scope: Scope, values: Env, exact: Set[Slot] = frozenset()):
        self.scope, self.values, self.exact = scope, values, exact

    def read(self, operand: Operand, weights: Mapping[Slot, Any]) -> Any:
        # Producers run before what reads them, without recursion: a penalty on a thousand
        # parameters is a chain of a thousand additions.
        pending = [operand]
        while pending:
            if self.has(pending[-1], weights):
                pending.pop()
                continue
            op = self.scope.producers[pending[-1]]
            missing = [each for each in op.inputs if not self.has(each, weights)]
            if missing:
                pending += missing
            else:
                self.run(op, weights)
        return self.known(operand, weights)

    def has(self, operand: Operand, weights: Mapping[Slot, Any]) -> bool:
        return not is_slot(operand) or any(
            operand in there for there in (weights, self.values, self.scope.given)
        )

    def known(self, operand: Operand, weights: Mapping[Slot, Any]) -> Any:
        if not is_slot(operand):
            return operand.val
        for there in (weights, self.values):
            if operand in there:
                return there[operand]
        return self.scope.given[operand]

    def run(self, op: Op, weights: Mapping[Slot, Any]) -> None:
        inputs = [self.read(operand, weights) for operand in op.inputs]
        outputs = _exactly(op, inputs) if op.outputs[0] in self.exact else op.call(*inputs)
        self.values.update(zip(op.outputs, outputs, strict=True))


def _exactly(op: Op, inputs: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation in float32 at least, whatever the loss casts to."""
    arrays = [jnp.asarray(x) for x in inputs]
    dtype = accumulator(*(x.dtype for x in arrays if is_dense(x)))
    arrays = [lax.convert_element_type(x, dtype) if is_dense(x) else x for x in arrays]
    if op.name == "convert_element_type":
        return arrays
    outputs = op.eqn.primitive.bind(*arrays, **op.eqn.params)
    return outputs if op.eqn.primitive.multiple_results else [outputs]


def _outer(
    program: Program, scope: Scope, given: Env, wanted: dict[Slot, None], exact: Set[Slot]
) -> Env:
    """The constants and parameter values of a scope and of the bodies within it."""
    env, found = _Env(scope, given, exact), {}
    known = {**scope.producers, **scope.given, **given}
    for slot in wanted:
        if slot in known:
            found[slot] = env.read(slot, {})
    for body in scope.children:
        inside = {slot: None for slot in wanted if slot in body.weights.values()}
        if not inside:
            continue
        needed = _inputs(body, inside)
        fixed = {s: env.read(o, {}) for s, o in body.invariant.items() if s in needed}
        slices = {s: env.read(o, {}) for s, o in body.sliced.items() if s in needed}

        def one(slices: Env, body: Scope = body, fixed: Env = fixed, inside: dict = inside) -> Env:
            return _outer(program, body, {**fixed, **slices}, inside, exact)

        if slices:
            level = body.depth - 1
            axes = {s: 0 if program.values[s].varying[level] else None for s in inside}
            found.update(jax.vmap(one, in_axes=0, out_axes=axes)(slices))
        else:
            found.update(one({}))
    return found


def _inputs(scope: Scope, wanted: dict[Slot, None]) -> set[Slot]:
    """Those inputs of a body that the wanted values are computed from."""
    seen: set[Slot] = set()
    pending: list[Operand] = list(wanted)
    for body in scope.children:
        inside = {s: None for s in wanted if s in body.weights.values()}
        if inside:
            used = _inputs(body, inside)
            pending += [o for s, o in (body.invariant | body.sliced).items() if s in used]
    while pending:
        slot = pending.pop()
        if is_slot(slot) and slot not in seen:
            seen.add(slot)
            if slot in scope.producers:
                pending += scope.producers[slot].inputs
    return seen


def _steps(
    steps: Sequence[Step],
    env: _Env,
    weights: Env,
    taps: dict[SiteIndex, Any],
    zero: jax.Array,
) -> Env:
    """Runs steps, and returns the activations of the sites among them."""
    acts: Env = {}
    for step in steps:
        if isinstance(step, Call):
            env.run(step.op, weights)
        elif isinstance(step, Use):
            site = step.site
            acts[site.act] = env.read(site.act, weights)
            env.run(site.op, weights)
            (out,) = site.op.outputs
            value = _of_example(env.values[out], zero) if site.loops else env.values[out]
            env.values[out] = tap(value, taps[site.number])
        elif isinstance(step, Remat):
            acts.update(_remat(step, env, weights, taps, zero))
        else:
            acts.update(_scan(step, env, weights, taps, zero))
    return acts


def _of_example(value: Any, zero: jax.Array) -> Any:
    # What stems from the counter of a loop alone is the same for all examples. JAX expects of a
    # custom derivative within a loop that value and derivative are batched alike.
    return lax.add(value, lax.broadcast(lax.convert_element_type(zero, value.dtype), value.shape))


def _remat(
    step: Remat, env: _Env, weights: Env, taps: dict[SiteIndex, Any], zero: jax.Array
) -> Env:
    def block(values: Env, weights: Env, taps: dict[SiteIndex, Any]) -> Any:
        inner = _Env(env.scope, dict(values))
        acts = _steps(step.steps, inner, weights, taps, zero)
        # An activation that the block is given need not be one of its results.
        return [inner.values[s] for s in step.writes], {
            s: a for s, a in acts.items() if s not in values
        }

    values = {slot: env.read(slot, weights) for slot in step.inputs}
    outputs, acts = jax.checkpoint(block, **step.options)(
        values, {key: weights[key] for key in step.weights}, _taps_of(step.sites, taps)
    )
    env.values.update(zip(step.writes, outputs, strict=True))
    given = {site.act: values[site.act] for site in step.sites if site.act in values}
    return {**given, **acts}


def _scan(step: Scan, env: _Env, weights: Env, taps: dict[SiteIndex, Any], zero: jax.Array) -> Env:
    body = step.body
    read = {slot: env.read(operand, weights) for slot, operand in step.sliced.items()}
    closed = {slot: env.read(operand, weights) for slot, operand in step.closed.items()}
    sliced = {key: weights[key] for key in body.weights if key in step.varying}
    shared = {key: weights[key] for key in body.weights if key not in step.varying}
    kept = [slot for slot in dict.fromkeys(site.act for site in step.sites) if slot not in read]

    def iteration(carry: list[Any], now: Any) -> Any:
        read, slices, taps = now
        values = {**closed, **read, **dict(zip(step.carry, carry, strict=True))}
        inner = _Env(body, values)
        tapped = {**shared, **slices}
        acts = _steps(body.steps, inner, tapped, taps, zero)
        carried = [inner.read(operand, tapped) for operand in step.carried]
        stacked = [inner.read(operand, tapped) for operand in step.stacked]
        return carried, (stacked, {slot: acts[slot] for slot in kept})

    initial = [jnp.asarray(env.read(operand, weights)) for operand in step.initial]
    carried, (stacked, acts) = lax.scan(
        iteration, initial, (read, sliced, _taps_of(step.sites, taps)), **step.options
    )
    env.values.update(zip(step.writes, [*carried, *stacked], strict=True))
    # A slice of what is stacked already need not be stacked again.
    return {**acts, **{site.act: read[site.act] for site in step.sites if site.act in read}}


def _taps_of(sites: Sequence[Site], taps: dict[SiteIndex, Any]) -> dict[SiteIndex, Any]:
    return {site.number: taps[site.number] for site in sites}
