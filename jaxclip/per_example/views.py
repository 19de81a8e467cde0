"""Weights that only rearrange parameters, and so have gradients of the same norm.

An array that is never read or written records where the entries of a weight lie in a parameter:
NumPy follows its addresses through transposes, slices and reshapes, and knows whether two of them
overlap. It takes address space alone.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from .program import ParamIndex, Value, View

# Their transposes keep the norm of a gradient: each entry of the result is another entry of the
# operand, or its negative.
_REARRANGING = frozenset(
    {"neg", "reshape", "squeeze", "expand_dims", "rev", "slice", "split", "transpose",
     "broadcast_in_dim", "dynamic_slice"}
)  # fmt: skip
# These hand on what they are given.
_IDENTITIES = frozenset(
    {"convert_element_type", "copy", "copy_p", "name", "optimization_barrier",
     "sharding_constraint", "reshard", "mesh_cast", "pvary", "pcast"}
)  # fmt: skip
_JOINING = frozenset({"concatenate", "stack"})
# NumPy gives up, and the answer is yes, where it is harder than this to find a common entry.
_HARD: Any = 10_000


def view_of(
    eqn: core.JaxprEqn,
    place: int,
    operands: Sequence[Value | None],
    uniform: Sequence[bool],
    loops: int,
) -> View | None:
    """How a result of an equation shows parameters.

    Args:
      eqn: the equation.
      place: which of its results.
      operands: what is known of its operands, None of a literal.
      uniform: which operands have the same number everywhere, in every iteration.
      loops: the number of scans that the result varies over.
    """
    name, output = eqn.primitive.name, _result(eqn, place)
    if not inexact(output):
        return None
    if name in _JOINING:
        return _joined(operands, loops)
    active = [i for i, value in enumerate(operands) if value is not None and value.active]
    if name == "optimization_barrier":
        active = [place] if place in active else []
    if len(active) != 1:
        return None
    first = operands[active[0]]
    if first is None or first.view is None or sum(first.varying) != loops:
        return None
    if not inexact(first.aval) or _complex(output) != _complex(first.aval):
        return None
    if output.size > first.aval.size:
        return None
    if name in _IDENTITIES or (name in ("add", "add_any", "sub") and active == [0]):
        return first.view  # what is added has no gradient
    if name in ("add", "add_any", "sub"):
        return first.view if name != "sub" else first.view._replace(dims=None)
    if name in ("mul", "div"):
        other = 1 - active[0]
        is_scale = uniform[other] and not (name == "div" and other == 0)
        return first.view._replace(dims=None, scaled=True) if is_scale else None
    if name not in _REARRANGING:
        return None
    return _rearranged(eqn, place, first.view, loops)


def overlap(a: View, b: View) -> bool:
    """Whether two weights may hold the same entry of a parameter."""
    shared = a.places.keys() & b.places.keys()
    return any(_meet(a.places[source], b.places[source]) for source in shared)


def whole(source: ParamIndex, aval: Any) -> View:
    """A parameter as a weight."""
    return View({source: np.empty(aval.shape, np.int8)}, tuple(range(aval.ndim)))


def sliced_by_loop(view: View, axis: int, starts: np.ndarray, size: int) -> View | None:
    """A weight of which each iteration of a loop has an index of one dimension to itself.

    Args:
      view: the weight, outside of the loop.
      axis: the dimension that is cut.
      starts: the index of each iteration.
      size: how long the dimension is.
    """
    steps = set(np.diff(starts).tolist())
    if len(steps) > 1 or 0 in steps or starts.min() < 0 or starts.max() >= size:
        return None
    places = view.places
    if view.single:
        ((source, place),) = places.items()
        first, last, step = int(starts[0]), int(starts[-1]), steps.pop() if steps else 1
        stop = last + (1 if step > 0 else -1)
        index = slice(first, stop if stop >= 0 else None, step)
        cut = None if place is None else np.moveaxis(place, axis, 0)[index]
        places = {source: None if cut is None else np.expand_dims(cut, axis + 1)}
    return View(places, None, view.scaled)


def inexact(aval: Any) -> bool:
    """Whether a value has derivatives."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _joined(operands: Sequence[Value | None], loops: int) -> View | None:
    """Weights side by side."""
    places: dict[ParamIndex, np.ndarray | None] = {}
    for value in operands:
        if value is None or value.view is None or sum(value.varying) != loops:
            return None
        view = value.view
        if view.scaled or places.keys() & view.places.keys():
            return None
        places |= view.places
    return View(places, None)


def _rearranged(eqn: core.JaxprEqn, place: int, view: View, loops: int) -> View:
    dims = None
    if eqn.primitive.name == "transpose" and view.dims is not None:
        moved = [view.dims[loops + axis] for axis in eqn.params["permutation"]]
        dims = view.dims[:loops] + tuple(moved)
    if not view.single:
        return view._replace(dims=dims)
    ((source, entries),) = view.places.items()
    known = None if entries is None else _moved(eqn, place, entries, loops)
    return View({source: known}, dims, view.scaled)


def _moved(eqn: core.JaxprEqn, place: int, x: np.ndarray, loops: int) -> np.ndarray | None:
    """The addresses of a result, given those of the operand."""
    params, name = eqn.params, eqn.primitive.name
    lead = (slice(None),) * loops
    if name == "neg":
        return x
    if name == "reshape" and params.get("dimensions") is not None:
        return None
    if name == "transpose":
        return x.transpose(*range(loops), *(loops + axis for axis in params["permutation"]))
    if name == "rev":
        return np.flip(x, tuple(loops + axis for axis in params["dimensions"]))
    if name == "slice":
        steps = params["strides"] or (1,) * len(params["start_indices"])
        bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        return x[(*lead, *(slice(*bound) for bound in bounds))]
    if name == "split":
        start = sum(params["sizes"][:place])
        cut = slice(start, start + params["sizes"][place])
        return x[(*lead, *(slice(None),) * params["axis"], cut)]
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        shaped = x.reshape((*x.shape[:loops], *_result(eqn, place).shape))
        return shaped if np.may_share_memory(shaped, x) else None  # copied: the addresses are lost
    return None


def _result(eqn: core.JaxprEqn, place: int) -> Any:
    return eqn.outvars[place].aval


def _meet(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return True
    try:
        return np.shares_memory(a, b, _HARD)
    except np.exceptions.TooHardError:
        return True


def _complex(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.complexfloating)
