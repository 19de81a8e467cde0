"""Constants whose values are known when a loss is traced, such as the counters of loops."""

from typing import Any

import jax
import numpy as np
from jax.extend import core

from .program import Operand, Scope, is_slot


def counter_step(body: core.Jaxpr, place: int, result: int) -> Any:
    """By how much a loop raises one of its carried values each time, None if it does not.

    Args:
      body: the body of the loop.
      place: which of its inputs the value is.
      result: which of its results.
    """
    variable, carried = body.invars[place], body.outvars[result]
    aval: Any = variable.aval
    if aval.shape != () or not np.issubdtype(aval.dtype, np.integer):
        return None
    for eqn in body.eqns:
        if carried in eqn.outvars and eqn.primitive.name == "add":
            others = [atom for atom in eqn.invars if atom is not variable]
            if len(others) == 1 and isinstance(others[0], core.Literal):
                return others[0].val
    return None


def known_value(scope: Scope, operand: Operand) -> np.ndarray | None:
    """The value of a constant, for each iteration of the innermost loop if it differs there.

    None where it is not known while the loss is traced, or differs in the loops around as well.
    """
    with jax.ensure_compile_time_eval():
        found = _known(scope, operand)
    return None if found is None else np.asarray(found[0])


def _known(scope: Scope, operand: Operand) -> tuple[Any, bool] | None:
    """A value, and whether it has the innermost loop as its first axis."""
    if not is_slot(operand):
        return operand.val, False
    if operand in scope.given:
        try:
            return np.asarray(scope.given[operand]), False
        except jax.errors.TracerArrayConversionError:
            return None
    if operand in scope.producers:
        op = scope.producers[operand]
        inputs = [_known(scope, each) for each in op.inputs]
        values = [each for each in inputs if each is not None]
        if len(values) < len(inputs) or op.eqn.effects:
            return None
        axes = [0 if looped else None for _, looped in values]
        looped = 0 in axes
        call = jax.vmap(op.call, in_axes=axes) if looped else op.call
        return call(*(value for value, _ in values))[op.outputs.index(operand)], looped
    if scope.parent is None:
        return None
    if scope.parent.depth == scope.depth:  # a rematerialized call
        return _known(scope.parent, operand)
    outer = {**scope.invariant, **scope.sliced}.get(operand)
    found = None if outer is None else _known(scope.parent, outer)
    if found is None or found[1]:
        return None
    return found[0], operand in scope.sliced
