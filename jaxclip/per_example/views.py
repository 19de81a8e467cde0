"""Weights that only rearrange a parameter: both gradients have the same norm."""

from typing import Any

import jax.numpy as jnp
from jax.extend import core

from .program import ParamIndex, Value, View

# Their transposes keep the norm of a gradient: each entry of the result is another entry of the
# operand, or its negative.
_REARRANGING = frozenset(
    {"convert_element_type", "copy", "neg", "reshape", "squeeze", "expand_dims", "rev", "slice",
     "split", "transpose", "broadcast_in_dim", "dynamic_slice"}
)  # fmt: skip


def view_of(eqn: core.JaxprEqn, first: Value | None, loops: int, output: Any) -> View | None:
    """How the result of an equation shows a parameter.

    Args:
      eqn: the equation.
      first: what is known of its first operand, if all others are constants.
      loops: the number of scans that the result varies over.
      output: shape and dtype of the result.
    """
    name = eqn.primitive.name
    if name not in _REARRANGING or first is None or not first.view:
        return None
    if sum(first.varying) != loops or not inexact(first.aval) or not inexact(output):
        return None
    source, dims = first.view
    if output.size > first.aval.size or _complex(output) != _complex(first.aval):
        return None
    if name == "transpose" and dims is not None:
        moved = [dims[loops + axis] for axis in eqn.params["permutation"]]
        return View(source, dims[:loops] + tuple(moved))
    kept = name in ("convert_element_type", "copy")
    return View(source, dims if kept else None)


def whole(source: ParamIndex, aval: Any) -> View:
    """A parameter as a weight."""
    return View(source, tuple(range(aval.ndim)))


def inexact(aval: Any) -> bool:
    """Whether a value has derivatives."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _complex(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.complexfloating)
