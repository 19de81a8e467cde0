"""`dot_general`, in every order of its dimensions."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..products import accumulator, arranged
from ..program import Site
from .base import Factors, Layout, Rule, precision_of, rest


def activation(eqn: Any, weight: int, examples: Sequence[int]) -> int | None:
    """The other operand, if that is all that there is of the example."""
    real = all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in eqn.invars)
    return examples[0] if real and len(examples) == 1 else None


def contracted(site: Site) -> list[tuple[int, int]]:
    """The dimensions of the activation that are summed over, and those of the weight.

    They come in the order of the activation, since that is the order in which `lax.dot_general`
    returns them when they are what is left of it.
    """
    contracting, _ = site.eqn.params["dimension_numbers"]
    return sorted(zip(contracting[site.act_position], contracting[site.position], strict=True))


def layout(site: Site) -> Layout:
    """What is summed over on the left, what is left of the weight on the right."""
    batch = site.eqn.params["dimension_numbers"][1][site.position]
    left = tuple(of_weight for _, of_weight in contracted(site))
    return Layout(tuple(batch), left, rest(site.kernel.ndim, left, batch))


def factors(site: Site, act: Array, out_grad: Array) -> Factors:
    """The two arrays; the positions of all iterations follow one another."""
    of_act, of_out = _dims(site)
    loops = out_grad.ndim - site.output.ndim
    return Factors(arranged(act, loops, *of_act), arranged(out_grad, loops, *of_out))


def total(site: Site, weight: Array, act: Array, out_grad: Array) -> Array:
    """One product, of the arrays as they lie."""
    batch = len(site.loops)
    own = [axis for axis, is_own in enumerate(site.varying) if is_own]
    shared = [axis for axis in range(batch + 1) if axis not in own]
    of_act, of_out = ([[batch + 1 + d for d in dims] for dims in side] for side in _dims(site))
    dtype = accumulator(act.dtype, out_grad.dtype)
    grad = lax.dot_general(
        lax.convert_element_type(act, dtype),
        lax.convert_element_type(out_grad, dtype),
        (
            ([*shared, *of_act[1]], [*shared, *of_out[1]]),
            ([*own, *of_act[0]], [*own, *of_out[0]]),
        ),
        precision_of(site),
        preferred_element_type=dtype,
    )
    order = [d for side in layout(site) for d in side]
    places = [len(own) + order.index(d) for d in range(len(order))]
    return lax.transpose(grad, [*range(len(own)), *places])


def _dims(site: Site) -> tuple[tuple, tuple]:
    """The groups, positions and features of the activation and of the output."""
    contracting, batch = site.eqn.params["dimension_numbers"]
    own, other = site.position, site.act_position
    features = tuple(of_act for of_act, _ in contracted(site))
    acting = rest(site.eqn.invars[other].aval.ndim, features, batch[other])
    free = rest(site.kernel.ndim, contracting[own], batch[own])
    # The output has the batch first, then what is left of the left operand, then of the right one.
    groups = tuple(range(len(batch[0])))
    before = len(groups) + (len(free) if own == 0 else 0)
    act_out = tuple(range(before, before + len(acting)))
    return (batch[other], acting, features), (
        groups,
        act_out,
        rest(site.output.ndim, groups, act_out),
    )


DOT = Rule(activation, factors, layout, total=total, contracted=contracted)
