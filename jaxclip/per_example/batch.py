"""A batch through the loss and back, and the norms of what it left."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from . import checks, measure
from .checks import Blocks
from .devices import axes_of, varying
from .forms import Form, Plan, plans
from .products import accumulator
from .program import Program
from .run import batched, weights_of
from .trace import program_of


class Ran(NamedTuple):
    """A batch after its backward pass, with all that the norms and the sum are made of."""

    program: Program
    plans: list[Plan]
    parameters: list[Array]
    weights: dict[int, Array]
    kept: measure.Kept
    made: list[measure.Grads]
    squares: dict[int, Array]
    values: Array
    aux: Any


def run(
    loss: Callable,
    params: PyTree,
    batch: Sequence[Any],
    size: int,
    has_aux: bool,
    blocks: Blocks,
    form: Form,
) -> Ran:
    """Traces a loss, runs it and its backward pass on a batch, and measures the gradients."""
    shapes = jax.tree.map(checks.abstract, params), jax.tree.map(checks.one_of_batch, batch)
    traced = checks.trace(loss, *shapes, has_aux)
    parameters, example = jax.tree.leaves(params), jax.tree.leaves(batch)
    program = program_of(traced.jaxpr, len(parameters))
    chosen = [plan for plan in plans(program, blocks.of, form) if plan.form != "unused"]
    weights = weights_of(program, parameters, _read(program))

    def taps(loops: Sequence[int], aval: Any) -> Array:
        zeros = lax.full((*loops, size, *aval.shape), 0, aval.dtype)
        return varying(zeros, axes_of(example))

    site_taps = {site.number: taps(site.loops, site.output) for site in program.sites}
    weight_taps = {
        slot: taps(
            weights[slot].shape[: sum(program.values[slot].varying)], program.values[slot].aval
        )
        for slot in program.lifted
    }

    zeros = taps((), jax.ShapeDtypeStruct((), jnp.float32))

    def losses(site_taps: dict, weight_taps: dict) -> Any:
        return batched(program, weights, site_taps, weight_taps, example, zeros)

    values, back, (aux, acts) = jax.vjp(losses, site_taps, weight_taps, has_aux=True)
    kept = measure.Kept(acts, *back(jnp.ones_like(values)))
    made, squares = measure.measured(program, chosen, parameters, kept)
    for i in set(range(len(parameters))) - squares.keys():
        squares[i] = jnp.zeros_like(values, accumulator(values.dtype))
    return Ran(
        program, chosen, parameters, weights, kept, made, squares, values, traced.aux.unflatten(aux)
    )


def _summed(squares: Mapping[int, Array], blocks: Blocks) -> list[Array]:
    wide = accumulator(*(s.dtype for s in squares.values()))
    size = next(iter(squares.values())).shape
    zero = jnp.zeros(size, wide)
    totals = [zero for _ in blocks.limits]
    for p, block in enumerate(blocks.of):
        totals[block] = lax.add(totals[block], lax.convert_element_type(squares[p], wide))
    return totals


def norms_of(ran: Ran, blocks: Blocks, mask: Array) -> list[Array]:
    """The norms of each block, `[batch]`, by squares where those are in range."""
    squares = _summed(ran.squares, blocks)
    return lax.cond(
        _trusted(squares, mask),
        lambda: [jnp.sqrt(square) for square in squares],
        lambda: [
            value.astype(square.dtype)
            for square, value in zip(
                squares,
                measure.safe_norms(
                    ran.program,
                    ran.plans,
                    ran.parameters,
                    ran.kept,
                    ran.made,
                    blocks.of,
                    len(blocks.limits),
                    mask.shape[0],
                ),
                strict=True,
            )
        ],
    )


def _trusted(squares: Sequence[Array], mask: Array) -> Array:
    """Whether every square is far from the ends of its dtype's range; zero is not."""
    low = jnp.sqrt(jnp.finfo(squares[0].dtype).tiny)
    fine = [((s >= low) & (s <= 1 / low)) | (~mask & jnp.isfinite(s)) for s in squares]
    return jnp.all(functools.reduce(operator.and_, fine))


def _read(program: Program) -> list[int]:
    return list(dict.fromkeys(key if key >= 0 else -1 - key for key in program.top.weights))
