"""Equations as functions, and the parts of those that hold others."""

from typing import Any

import jax
from jax.extend import core


def function_of(eqn: core.JaxprEqn) -> Any:
    """The equation as a function of all its operands, literals included."""
    places = [i for i, atom in enumerate(eqn.invars) if not isinstance(atom, core.Literal)]
    variables: list[Any] = list(dict.fromkeys(eqn.invars[i] for i in places))
    where = [next(i for i in places if eqn.invars[i] is v) for v in variables]
    # JAX 0.8 does not export the class of results that nothing reads; all versions print them so.
    kept = [i for i, v in enumerate(eqn.outvars) if repr(v) != "_"]
    jaxpr = core.Jaxpr(
        constvars=(),
        invars=variables,
        outvars=[eqn.outvars[i] for i in kept],
        eqns=[eqn],
        effects=eqn.effects,
        debug_info=_DEBUG_INFO,
    )
    run = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))

    def call(*operands: Any) -> list[Any]:
        results: list[Any] = [None] * len(eqn.outvars)
        for i, result in zip(kept, run(*(operands[place] for place in where)), strict=True):
            results[i] = result
        return results

    return call


def closed_of(body: Any) -> core.ClosedJaxpr:
    """The body of a call, which some primitives keep without its (empty) constants."""
    return body if isinstance(body, core.ClosedJaxpr) else core.ClosedJaxpr(body, ())


def scan_inputs(params: dict[str, Any]) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(carry)


def cut_axis(eqn: core.JaxprEqn) -> int | None:
    """The dimension of which a `dynamic_slice` takes one index, if it takes all of the others."""
    operand: Any = eqn.invars[0].aval
    sizes = eqn.params["slice_sizes"]
    cut = [axis for axis, size in enumerate(sizes) if size != operand.shape[axis]]
    return cut[0] if len(cut) == 1 and sizes[cut[0]] == 1 else None


_DEBUG_INFO = jax.make_jaxpr(lambda: ())().jaxpr.debug_info
