"""Forward and backward pass of a batch, with per-example norms."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ..devices import spread_out
from . import checks, measure
from .backward import Arrays, Backward, Grads, Kept
from .checks import Blocks
from .devices import at_least_at_once, axes_of
from .forms import Form, Lanes, plans
from .gram import Square
from .products import accumulator
from .program import Program, Slot
from .rounding import SPARE, gamma
from .run import batched, weights_of
from .trace import program_of


def run(
    loss: Callable,
    params: PyTree,
    batch: Sequence[Any],
    size: int,
    has_aux: bool,
    blocks: Blocks,
    form: Form,
) -> Backward:
    """Traces a loss, and runs it and its backward pass on a batch."""
    shapes = jax.tree.map(checks.abstract, params), jax.tree.map(checks.one_of_batch, batch)
    traced = checks.trace(loss, *shapes, has_aux)
    parameters, example = jax.tree.leaves(params), jax.tree.leaves(batch)
    program = program_of(traced.jaxpr, len(parameters))
    lanes = Lanes(size, 1 if axes_of(example) else at_least_at_once(size))
    chosen = [plan for plan in plans(program, blocks.of, form, lanes) if plan.form != "unused"]
    weights = weights_of(program, parameters, _read(program))

    def taps(loops: Sequence[int], aval: Any) -> Array:
        zeros = lax.full((*loops, size, *aval.shape), 0, aval.dtype)
        return spread_out(zeros, axes_of(example))

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
    ones = spread_out(jnp.ones_like(values), axes_of(values))
    # XLA may compute a narrow dtype in a wider one, and round in one of the places that read it
    # and not in another: the sum would be of other gradients than those that were measured.
    kept = lax.optimization_barrier(Kept(acts, *back(ones)))
    arrays = Arrays(parameters, weights, kept, values)
    return Backward(program, chosen, arrays, traced.aux.unflatten(aux))


def norms_of(
    backward: Backward, blocks: Blocks, mask: Array, bound: bool
) -> tuple[list[Array], list[Grads]]:
    """The norms of each block, `[batch]`, and what of the gradients is kept for the sum.

    Norms are taken from squares where these are in range, and no rounding can have spoiled them.
    """
    parameters, _, _, values = backward.arrays
    gradients, found = measure.measured(backward, bound)
    squares = _summed(found, blocks, values)
    trusted = [_trusted(square, mask) for square in squares]
    plain = [jnp.sqrt(square.value) for square in squares]
    if bound:
        plain = [x * (1 + gamma(len(parameters) + SPARE, x.dtype)) for x in plain]

    def safe() -> list[Array]:
        values = measure.safe_norms(backward, gradients, blocks.of, len(blocks.limits), bound)
        return [
            jnp.where(t, p, v.astype(p.dtype))
            for t, p, v in zip(trusted, plain, values, strict=True)
        ]

    all_trusted = functools.reduce(operator.and_, [jnp.all(t) for t in trusted])
    return lax.cond(all_trusted, lambda: plain, safe), gradients


def _summed(squares: Mapping[int, Square], blocks: Blocks, values: Array) -> list[Square]:
    """The squares of each block."""
    wide = accumulator(values.dtype, *(square.value.dtype for square in squares.values()))
    zero = jnp.zeros_like(values, wide)
    totals = [Square(zero, zero) for _ in blocks.limits]
    for parameter, square in squares.items():
        block = blocks.of[parameter]
        totals[block] = Square(
            *(
                lax.add(total, lax.convert_element_type(part, wide))
                for total, part in zip(totals[block], square, strict=True)
            )
        )
    return totals


def _trusted(square: Square, mask: Array) -> Array:
    """Whether a square is far from the ends of its dtype's range, and not in doubt; zero is not."""
    value, doubt = square
    low = jnp.sqrt(jnp.finfo(value.dtype).tiny)
    fine = (value >= low) & (value <= 1 / low) & (doubt <= value)
    return fine | (~mask & jnp.isfinite(value))


def _read(program: Program) -> list[Slot]:
    return list(dict.fromkeys(program.top.weights.values()))
