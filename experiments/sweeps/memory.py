"""The peak memory of a computation, estimated from its trace before anything is compiled.

XLA fuses what works entry by entry into what uses it, so that no array is made in between. What is
left are arrays that are made by an operation and live until the last one that needs them, possibly
through such a fusion; the peak is the most that live at one time.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax.extend import core

from jaxclip.per_example.equations import scan_inputs

# Primitives that XLA makes arrays for; all others are elementwise, or only views.
MATERIALIZED = frozenset(
    {
        "dot_general", "conv_general_dilated", "gather", "scatter", "scatter_add", "scatter-add",
        "sort", "cumsum", "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or",
        "argmax", "argmin", "reduce_prod", "dynamic_update_slice", "concatenate",
        "random_bits", "threefry2x32", "svd", "top_k",
    }
)  # fmt: skip

# Primitives that XLA computes once rather than in each of their uses.
EXPENSIVE = frozenset(
    {
        "exp",
        "exp2",
        "log",
        "log1p",
        "tanh",
        "logistic",
        "erf",
        "erf_inv",
        "pow",
        "div",
        "rsqrt",
        "sqrt",
    }
)


def peak(jaxpr: core.Jaxpr, carried: int = 0) -> int:
    """Returns the most bytes that live at one time while a jaxpr runs, its inputs not counted.

    Args:
        jaxpr: the computation.
        carried: how many of its outputs, the first ones, a loop hands to its next round: they are
            written where they came from.
    """
    sources: dict[core.Var, frozenset[core.Var]] = {}
    needed = find_materialized(jaxpr) - find_in_place(jaxpr, carried)
    steps = []
    for eqn in jaxpr.eqns:
        read = frozenset().union(*(sources.get(var, frozenset()) for var in variables(eqn.invars)))
        for var in eqn.outvars:
            if var in needed:
                sources[var] = frozenset({var})
            else:
                sources[var] = read
        steps.append((eqn, read))
    last: dict[core.Var, int] = {}
    for index, (_, read) in enumerate(steps):
        for var in read:
            last[var] = index
    for var in variables(jaxpr.outvars):
        for source in sources.get(var, frozenset()):
            last[source] = len(steps)
    most = live = 0
    dying: dict[int, int] = {}
    for index, (eqn, _) in enumerate(steps):
        new = [var for var in eqn.outvars if var in needed]
        size = sum(nbytes(var) for var in new)
        rounds = scan_inputs(eqn.params)[1] if eqn.primitive.name == "scan" else 0
        inside = max((peak(inner, rounds) for inner in inner_jaxprs(eqn)), default=0)
        most = max(most, live + size + inside)
        live += size
        for var in new:
            at = last.get(var, index)
            dying[at] = dying.get(at, 0) + nbytes(var)
        live -= dying.pop(index, 0)
    return most


def find_materialized(jaxpr: core.Jaxpr) -> set[core.Var]:
    """Returns the variables that XLA makes arrays for."""
    found = set(variables(jaxpr.outvars))
    uses = Counter(var for eqn in jaxpr.eqns for var in variables(eqn.invars))
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in MATERIALIZED or any(inner_jaxprs(eqn)):
            found.update(eqn.outvars)
            found.update(variables(eqn.invars))
        if eqn.primitive.name in EXPENSIVE:
            found.update(var for var in eqn.outvars if uses[var] > 1)
    return found


def find_in_place(jaxpr: core.Jaxpr, carried: int) -> set[core.Var]:
    """Returns the variables that reuse a buffer: carries of loops that no primitive made.

    The first value of a carry is written where the loop has it.
    """
    by_made = {
        var for eqn in jaxpr.eqns if eqn.primitive.name in MATERIALIZED for var in eqn.outvars
    }
    found = set(variables(jaxpr.outvars[:carried])) - by_made
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            consts, count = scan_inputs(eqn.params)
            found |= set(variables(eqn.invars[consts : consts + count])) - by_made
    return found


def inner_jaxprs(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yields the jaxprs that an equation runs."""
    for value in eqn.params.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def variables(atoms: Any) -> Iterator[core.Var]:
    """Yields the atoms that are variables."""
    return (atom for atom in atoms if isinstance(atom, core.Var))


def nbytes(var: core.Var) -> int:
    """Returns the bytes of a variable."""
    aval: Any = var.aval
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8)
