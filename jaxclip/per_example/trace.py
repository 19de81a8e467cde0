"""From a loss to its program: the jaxpr, with calls inlined and every value classified."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from . import rules
from .constants import counter_step, known_value
from .equations import closed_of, cut_axis, function_of, scan_inputs
from .program import (
    Call,
    Kind,
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
    Use,
    Value,
    View,
    is_slot,
)
from .views import inexact, sliced_by_loop, view_of, whole

# Where they enlarge a weight that no rule takes, it is the small weight that is lifted.
_ENLARGING = frozenset({"broadcast_in_dim", "reshape", "convert_element_type", "squeeze"})
_REPEATING = frozenset({"broadcast_in_dim", "reshape", "convert_element_type"})
_REMAT = "remat2"  # JAX 0.8 does not export the primitive
_INLINED = {primitives.jit_p: "jaxpr", primitives.closed_call_p: "call_jaxpr"}


def program_of(closed: core.ClosedJaxpr, num_params: int) -> Program:
    """Sorts the equations of a loss `(*params, *example) -> (loss, *aux)`."""
    return _Tracer().program(closed, num_params)


class _Counter(NamedTuple):
    """The slots of what a loop counts, one number an iteration, and of what it ends at."""

    values: Slot
    last: Slot


class _Tracer:
    """The program while it grows."""

    def __init__(self):
        self.slots = itertools.count()
        self.values: dict[Slot, Value] = {}
        self.sites: list[Site] = []
        self.lifted: dict[Slot, list[str]] = {}
        self.tapped: dict[Slot, Slot] = {}
        self.loops: dict[Slot, tuple[int, ...]] = {}
        self.copies: dict[tuple[Slot, int], Slot] = {}
        self.uniform: set[Slot] = set()

    def program(self, closed: core.ClosedJaxpr, num_params: int) -> Program:
        top = Scope()
        variables = closed.jaxpr.invars
        params = [
            self.new(
                v.aval,
                Kind.PARAMETER,
                (),
                True,
                frozenset({ParamIndex(i)}),
                whole(ParamIndex(i), v.aval),
            )
            for i, v in enumerate(variables[:num_params])
        ]
        example = [self.new(v.aval, Kind.EXAMPLE) for v in variables[num_params:]]
        loss, *aux = self.inline(top, closed, [*params, *example])
        results = [
            self.as_example(top, loss, "the loss"),
            *(self.as_example(top, out, None) for out in aux),
        ]
        return Program(
            top,
            self.values,
            params,
            example,
            results,
            self.sites,
            self.lifted,
            self.tapped,
            self.loops,
        )

    def new(self, aval: Any, kind: Kind, *known: Any) -> Slot:
        slot = Slot(next(self.slots))
        self.values[slot] = Value(aval, kind, *known)
        return slot

    def kind(self, operand: Operand) -> Kind:
        if not is_slot(operand):
            return Kind.CONSTANT
        return self.values[operand].kind

    def inline(
        self, scope: Scope, closed: core.ClosedJaxpr, operands: Sequence[Operand]
    ) -> list[Operand]:
        """Adds the equations of a jaxpr to a scope, and returns its results."""
        names: dict[core.Var, Operand] = dict(zip(closed.jaxpr.invars, operands, strict=True))
        for variable, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            slot = self.new(variable.aval, Kind.CONSTANT, (False,) * scope.depth)
            scope.given[slot] = const
            names[variable] = slot

        def read(atom: Any) -> Operand:
            return atom if isinstance(atom, core.Literal) else names[atom]

        for eqn in closed.jaxpr.eqns:
            outputs = self.equation(scope, eqn, [read(atom) for atom in eqn.invars])
            names.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def equation(
        self, scope: Scope, eqn: core.JaxprEqn, inputs: list[Operand]
    ) -> Sequence[Operand]:
        kinds = [self.kind(operand) for operand in inputs]
        reads_params = Kind.PARAMETER in kinds
        if eqn.primitive in _INLINED and reads_params:
            return self.inline(scope, closed_of(eqn.params[_INLINED[eqn.primitive]]), inputs)
        if Kind.EXAMPLE not in kinds:
            return self.outer(scope, eqn, inputs)
        if reads_params and eqn.primitive.name == _REMAT:
            return self.remat(scope, eqn, inputs)
        if reads_params and eqn.primitive is primitives.scan_p:
            return self.scan(scope, eqn, inputs)
        return self.step(scope, eqn, inputs)

    def outer(self, scope: Scope, eqn: core.JaxprEqn, inputs: list[Operand]) -> list[Slot]:
        """An equation on constants and parameter values alone."""
        known = [self.values[operand] for operand in inputs if is_slot(operand)]
        varying = tuple(
            any(value.varying[level] for value in known) for level in range(scope.depth)
        )
        passes = eqn.primitive is not primitives.stop_gradient_p
        kind = max((value.kind for value in known), default=Kind.CONSTANT)
        active = passes and any(value.active for value in known)
        sources = frozenset().union(*(value.sources for value in known if value.active))
        operands = [self.values.get(operand) if is_slot(operand) else None for operand in inputs]
        uniform = [self.is_uniform(operand) for operand in inputs]
        outputs = []
        for place, v in enumerate(eqn.outvars):
            view = view_of(eqn, place, operands, uniform, sum(varying)) if active else None
            if view is None and active and eqn.primitive is primitives.dynamic_slice_p:
                view = self.one_each(scope, eqn, inputs)
            own = frozenset(view.places) if view is not None else sources
            outputs.append(self.new(v.aval, kind, varying, active and inexact(v.aval), own, view))
        if eqn.primitive.name in _REPEATING and uniform[0]:
            self.uniform.update(outputs)
        op = Op(eqn.primitive.name, function_of(eqn), tuple(inputs), tuple(outputs), eqn)
        scope.producers.update(dict.fromkeys(outputs, op))
        return outputs

    def one_each(self, scope: Scope, eqn: core.JaxprEqn, inputs: list[Operand]) -> View | None:
        """A slice of which every iteration has another one, as in a loop over `w[i]`."""
        value = self.values.get(inputs[0])
        if value is None or value.view is None or any(value.varying):
            return None
        axis = cut_axis(eqn)
        if axis is None or not all(self.kind(each) == Kind.CONSTANT for each in inputs[1:]):
            return None
        starts = known_value(scope, inputs[1 + axis])
        if starts is None or starts.ndim != 1:
            return None
        return sliced_by_loop(value.view, axis, starts, value.aval.shape[axis])

    def is_uniform(self, operand: Operand) -> bool:
        """Whether an operand that no gradient passes is the same number everywhere."""
        if not is_slot(operand):
            return operand.aval.size == 1
        value = self.values[operand]
        if value.active or any(value.varying):
            return False
        return getattr(value.aval, "size", 0) == 1 or operand in self.uniform

    def step(self, scope: Scope, eqn: core.JaxprEqn, inputs: list[Operand]) -> list[Slot]:
        """An equation that reads an example value."""
        outputs = [self.new(v.aval, Kind.EXAMPLE) for v in eqn.outvars]
        weights = [
            position
            for position, operand in enumerate(inputs)
            if is_slot(operand) and self.values[operand].active
        ]
        call = function_of(eqn)
        act_position = rules.activation(eqn, inputs, weights, self.kind)
        if act_position is None:
            differentiable = any(inexact(v.aval) for v in eqn.outvars)
            label = eqn.primitive.name if differentiable else None
            read = tuple(self.as_example(scope, operand, label) for operand in inputs)
            scope.steps.append(Call(Op(eqn.primitive.name, call, read, tuple(outputs))))
            return outputs
        (position,) = weights
        weight = inputs[position]
        read = tuple(
            self.as_example(scope, operand, None) if place != position else operand
            for place, operand in enumerate(inputs)
        )
        scope.weights[weight] = weight
        self.loops[weight] = scope.loops
        site = Site(
            SiteIndex(len(self.sites)),
            eqn,
            weight,
            position,
            inputs[act_position],
            act_position,
            scope.loops,
            self.values[weight].varying,
            Op(eqn.primitive.name, call, read, tuple(outputs)),
        )
        self.sites.append(site)
        scope.steps.append(Use(site))
        return outputs

    def as_example(self, scope: Scope, operand: Operand, reader: str | None) -> Operand:
        """An operand as the steps may read it, differentiated as a whole if a reader is named."""
        if not is_slot(operand) or self.values[operand].kind != Kind.PARAMETER:
            return operand
        if reader is None or not self.values[operand].active:
            scope.weights[operand] = operand
            return operand
        enlarged = self.enlarged(scope, operand)
        read = self.lift(scope, operand if not enlarged else enlarged[0].inputs[0], reader)
        for op in enlarged:
            key = (op.outputs[0], id(scope.steps))
            if key not in self.copies:
                self.copies[key] = self.new(self.values[op.outputs[0]].aval, Kind.EXAMPLE)
                scope.steps.append(Call(Op(op.name, op.call, (read,), (self.copies[key],))))
            read = self.copies[key]
        return read

    def enlarged(self, scope: Scope, slot: Slot) -> list[Op]:
        """The operations, first to last, that made a value of a smaller one by repeating it."""
        chain: list[Op] = []
        producer = scope.producers.get(slot)
        while producer is not None and producer.name in _ENLARGING and self.small(producer.inputs):
            chain.append(producer)
            producer = scope.producers.get(producer.inputs[0])
        return chain[::-1]

    def lift(self, scope: Scope, operand: Slot, reader: str) -> int:
        """A parameter value with a tap on it."""
        if operand not in self.tapped:
            self.tapped[operand] = self.new(self.values[operand].aval, Kind.EXAMPLE)
        scope.weights[self.tapped[operand]] = operand
        self.loops[operand] = scope.loops
        readers = self.lifted.setdefault(operand, [])
        if reader not in readers:
            readers.append(reader)
        return self.tapped[operand]

    def small(self, inputs: tuple[Operand, ...]) -> bool:
        return len(inputs) == 1 and is_slot(inputs[0]) and inexact(self.values[inputs[0]].aval)

    def remat(self, scope: Scope, eqn: core.JaxprEqn, inputs: list[Operand]) -> Sequence[Operand]:
        # The parameter values within are computed ahead with all others: only steps are recomputed.
        inner = Scope(scope.depth, scope.loops, scope.producers, scope.given, [], scope.children)
        inner.parent = scope
        first = len(self.sites)
        results = self.inline(inner, closed_of(eqn.params["jaxpr"]), inputs)
        written = {slot for step in inner.steps for slot in step.writes}
        read = {slot for step in inner.steps for slot in step.reads if slot not in written}
        read = {s for s in read if s not in inner.weights and self.kind(s) != Kind.PARAMETER}
        outputs = tuple(slot for slot in results if is_slot(slot) and slot in written)
        scope.weights.update(inner.weights)
        scope.steps.append(
            Remat(
                inner.steps,
                tuple(sorted(read)),
                tuple(dict.fromkeys(outputs)),
                tuple(inner.weights),
                tuple(self.sites[first:]),
                {name: eqn.params[name] for name in ("prevent_cse", "policy")},
            )
        )
        return results

    def scan(self, scope: Scope, eqn: core.JaxprEqn, inputs: list[Operand]) -> Sequence[Operand]:
        closed, length = closed_of(eqn.params["jaxpr"]), eqn.params["length"]
        consts, carries = scan_inputs(eqn.params)
        variables, results = closed.jaxpr.invars, closed.jaxpr.outvars
        body = Scope(scope.depth + 1, (*scope.loops, length), parent=scope)
        first = len(self.sites)
        # A value that is carried around unchanged is as good as one closed over.
        unchanged = [
            results[i] is variables[consts + i] and self.kind(inputs[consts + i]) != Kind.EXAMPLE
            for i in range(carries)
        ]
        counters = {
            i: counter
            for i in range(carries)
            if (counter := self.counter(scope, eqn, closed.jaxpr, inputs[consts + i], consts + i))
        }
        inputs = [
            counters[i - consts].values if i - consts in counters else operand
            for i, operand in enumerate(inputs)
        ]
        replaced = [same or i in counters for i, same in enumerate(unchanged)]
        slots, carry, initial, closed_over, sliced = [], [], [], {}, {}
        for place, (variable, operand) in enumerate(zip(variables, inputs, strict=True)):
            is_carry = consts <= place < consts + carries
            is_slice = place >= consts + carries or place - consts in counters
            if is_carry and not replaced[place - consts]:
                slot = self.new(variable.aval, Kind.EXAMPLE)
                carry.append(slot)
                initial.append(self.as_example(scope, operand, "the first carry of a scan"))
            elif self.kind(operand) == Kind.EXAMPLE:
                slot = self.new(variable.aval, Kind.EXAMPLE)
                (sliced if is_slice else closed_over)[slot] = operand
            else:
                slot = self.inherit(scope, operand, variable.aval, is_slice)
                (body.sliced if is_slice else body.invariant)[slot] = operand
                if self.kind(operand) == Kind.CONSTANT:  # steps may read it too
                    (sliced if is_slice else closed_over)[slot] = operand
            slots.append(slot)
        outs = self.inline(body, closed, slots)
        carried = [
            self.as_example(body, out, "the carry of a scan")
            for i, out in enumerate(outs[:carries])
            if not replaced[i]
        ]
        stacked = [self.as_example(body, out, "the output of a scan") for out in outs[carries:]]
        known = {i: counter.last for i, counter in counters.items()}
        known |= {i: inputs[consts + i] for i in range(carries) if unchanged[i]}
        outputs = [
            known[i] if i in known else self.new(v.aval, Kind.EXAMPLE)
            for i, v in enumerate(eqn.outvars)
        ]
        scope.children.append(body)
        scope.weights.update(body.weights)
        scope.steps.append(
            Scan(
                body,
                tuple(carry),
                tuple(initial),
                closed_over,
                sliced,
                tuple(carried),
                tuple(stacked),
                tuple(o for i, o in enumerate(outputs) if i not in known),
                frozenset(
                    slot
                    for slot, weight in body.weights.items()
                    if self.values[weight].varying[scope.depth]
                ),
                tuple(self.sites[first:]),
                {name: eqn.params[name] for name in ("length", "reverse", "unroll")},
            )
        )
        return outputs

    def counter(
        self, scope: Scope, eqn: core.JaxprEqn, body: core.Jaxpr, start: Operand, place: int
    ) -> _Counter | None:
        """A carried value that only counts the iterations, as something that the loop is given."""
        step = counter_step(body, place, place - scan_inputs(eqn.params)[0])
        if step is None or self.kind(start) != Kind.CONSTANT:
            return None
        first = known_value(scope, start)
        if first is None or first.ndim:
            return None
        length = eqn.params["length"]
        values = (first + step * np.arange(length + 1)).astype(first.dtype)
        ahead = values[:-1][::-1] if eqn.params["reverse"] else values[:-1]
        return _Counter(self.given(scope, ahead), self.given(scope, values[-1]))

    def given(self, scope: Scope, value: np.ndarray) -> Slot:
        """A constant that is known."""
        slot = self.new(jax.typeof(value), Kind.CONSTANT, (False,) * scope.depth)
        scope.given[slot] = value
        return slot

    def inherit(self, scope: Scope, operand: Operand, aval: Any, is_slice: bool) -> Slot:
        """A constant or parameter value of the surrounding scope, in the body of a scan."""
        if not is_slot(operand):
            return self.new(aval, Kind.CONSTANT, (*(False,) * scope.depth, is_slice))
        value = self.values[operand]
        return self.new(
            aval, value.kind, (*value.varying, is_slice), value.active, value.sources, value.view
        )
