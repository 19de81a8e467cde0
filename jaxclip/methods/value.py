"""Clipping by value, which has a way of its own: every block is one entry."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from ..bits import exponent, magnitude, no_larger, normal_size, times_power_of_two
from ..clip_metrics import Seen, rms_by_array
from ..core import (
    ClipState,
    Detail,
    NonfiniteOptions,
    check_update,
    clip,
    next_state,
    scope_of,
)
from ..devices import Across, across, devices, over_devices
from ..leaves import measurable, places, replace_measured
from ..measures import per_entry
from ..norms import by_largest, count, l2, ratio, rescued, square, working_dtype
from ..reductions import lean_maximum, lean_sum, sum_and_number
from ..shrinks import Nonfinite
from ..thresholds import LimitLike
from ..thresholds.tree import is_threshold, limit_tree
from .named import named_method


@named_method()
def clip_by_value(
    limit: PyTree[LimitLike | None], **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Clips every entry to the interval from minus to plus the limit.

    $$u_i = \min(\max(g_i, -\tau), \tau)$$

    Complex entries are scaled to the modulus $\tau$.

    Args:
      limit: $\tau$; a tree of limits may tell the arrays apart, None meaning unlimited.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`; a block is
        one entry, and nothing but the metrics crosses devices.

    Returns:
      The transformation. Its metrics are root mean squares over the entries.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_value(1.0)
      >>> gradient = jnp.array([0.5, -3.0])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [ 0.5 -1. ]

    Source:
      `optax.clip`, `torch.nn.utils.clip_grad_value_`.
    """
    by_factor = clip(per_entry(), limit, **options)
    if any(map(is_threshold, jax.tree.leaves(limit, is_leaf=is_threshold))):
        return by_factor  # a threshold may want to see, and to learn from, every entry
    thresholds, scope = limit_tree(limit), scope_of(options)
    nonfinite, name = options.get("nonfinite", "propagate"), options.get("name", "clip")

    # The same outcome and state, without an array of norms and one of factors.
    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipState]:
        own = scope.own(updates)
        arrays, structure = jax.tree.flatten(measurable(own))
        before = check_update(updates, state, params, name)
        dtype = before.norm.dtype
        limits = thresholds.given(structure.unflatten(arrays), state.step, dtype)
        clamped = [_clamped(x, c, nonfinite)[0] for x, c in zip(arrays, limits, strict=True)]
        apart = [scope.spread(leaf, alone=True).apart for leaf in scope.leaves(own)]
        [over] = across([apart])
        [(norm, leaves)] = rms_by_array([arrays], [()], [over])
        clipped_norm, beyond = _after(arrays, limits, nonfinite, over, dtype)
        entries = [x.size * devices(names) for x, names in zip(arrays, apart, strict=True)]
        seen = Seen(
            norm,
            clipped_norm,
            mean_limit(limits, entries, dtype),
            beyond,
            leaves,
            places(own),
            *by_name(structure, leaves, limits, options.get("detail", "summary")),
        )
        return replace_measured(updates, structure.unflatten(clamped)), next_state(
            state, name, state.thresholds, seen
        )

    return optax.GradientTransformationExtraArgs(by_factor.init, update)


def _after(
    arrays: Sequence[Array],
    limits: Sequence[Array],
    nonfinite: Nonfinite,
    over: Across,
    dtype: jnp.dtype,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The root mean square of the clamped entries, and the share of the entries that were beyond.

    The entries are read and clamped once more, since to keep what was clamped takes longer.
    """
    shares = [x.size * (devices(over.axes) // n) for x, n in zip(arrays, over.copies, strict=True)]

    def read(x: Array, limit: Array) -> tuple[Array, Array]:
        x, limit = lax.optimization_barrier((x, limit))
        clamped, beyond = _clamped(x, limit, nonfinite)
        return clamped.astype(working_dtype(x.dtype)), beyond

    def mean(sums: list[Array]) -> Array:
        own = [s.astype(dtype) / n for s, n in zip(sums, over.copies, strict=True)]
        [total] = over_devices(lax.psum, over.axes, [sum(own, start=jnp.zeros((), dtype))])
        # Counted here, since `custom_vmap` in `rescued` takes no arrays from outside.
        return total / jnp.maximum(count(sum(shares), dtype), 1)

    def plain(sources: list[tuple[Array, Array]]) -> tuple[list[Array], Array]:
        sums = [sum_and_number(square(x), beyond) for x, beyond in itertools.starmap(read, sources)]
        return [mean([squares for squares, _ in sums])], mean([number for _, number in sums])

    def scaled(sources: list[tuple[Array, Array]]) -> list[Array]:
        def largest(x: Array, limit: Array) -> Array:
            size = lean_maximum(magnitude(read(x, limit)[0]), tuple(range(x.ndim)))
            return normal_size(size).astype(dtype)

        def divided(x: Array, limit: Array, root: Array) -> Array:
            return lean_sum(square(ratio(read(lax.optimization_barrier(x), limit)[0], root)))

        sizes = [magnitude(largest(*source)) for source in sources]
        most = functools.reduce(jnp.maximum, sizes, magnitude(jnp.zeros((), dtype)))
        return by_largest(
            [normal_size(m) for m in over_devices(lax.pmax, over.axes, [most])],
            lambda roots: [jnp.sqrt(mean([divided(*source, roots[0]) for source in sources]))],
        )

    sources = list(zip(arrays, limits, strict=True))
    choose = rescued(plain, jnp.sqrt, scaled, batches=not over.axes)
    [value], beyond = choose(lax.stop_gradient(sources))
    return value, beyond.astype(jnp.float32)


def by_name(
    structure: Any, leaves: Float[Array, " leaves"], limits: Sequence[Array], detail: Detail
) -> tuple[PyTree[Array], PyTree[Array]]:
    """The norms and limits of leaves that the metrics hold by name."""
    if detail == "summary":
        return (), ()
    return structure.unflatten(list(leaves)), structure.unflatten(limits)


def mean_limit(
    limits: Sequence[Float[Array, ""]], blocks: Sequence[int], dtype: jnp.dtype
) -> Float[Array, ""]:
    """The root mean square of limits, each of a number of blocks; a limit of none is not counted.

    The numbers may be beyond an int32, and symbolic.
    """
    counts = [jnp.asarray(number, dtype) for number in blocks]
    total = jnp.maximum(sum(counts, jnp.zeros((), dtype)), 1)
    weighted = [
        jnp.where(count > 0, limit * jnp.sqrt(count / total), 0)
        for limit, count in zip(limits, counts, strict=True)
    ]
    [mean] = l2([weighted], [()])
    return mean


def _clamped(
    x: Array, limit: Float[Array, ""], nonfinite: Nonfinite
) -> tuple[Array, Bool[Array, "..."]]:
    """The array with its entries within the limit, and which of them were beyond it."""
    wide = x.astype(working_dtype(x.dtype))
    limit = limit.astype(wide.real.dtype)
    size, at_limit = (_of_complex if jnp.iscomplexobj(x) else _of_real)(wide, limit)
    # By selection: arithmetic flushes subnormal entries.
    clamped = jnp.where(no_larger(size, limit), x, at_limit.astype(x.dtype))
    defined = jnp.isfinite(size) & ~jnp.isnan(limit)
    bad = jnp.array(0 if nonfinite == "zero" else jnp.nan, x.dtype)
    return jnp.where(defined, clamped, bad), defined & (magnitude(size) > magnitude(limit))


def _of_real(x: Array, limit: Array) -> tuple[Array, Array]:
    """The sizes of real entries, and the entries of the size of the limit."""
    return jnp.abs(x), jnp.copysign(limit, x)


def _of_complex(z: Array, limit: Array) -> tuple[Array, Array]:
    """The moduli of complex entries, and the entries whose modulus is the limit."""
    e = exponent(z)
    unit = times_power_of_two(z, -e)  # in range, where neither squares nor quotients are lost
    zero = unit == 0
    modulus = jnp.where(zero, 0, jnp.abs(jnp.where(zero, 1, unit)))
    direction = unit / jnp.where(zero, 1, modulus).astype(z.dtype)
    of_limit = exponent(limit)
    scaled = direction * times_power_of_two(limit, -of_limit).astype(z.dtype)
    at_limit = jnp.where(zero, z, times_power_of_two(scaled, of_limit))  # with the signs of zero
    return times_power_of_two(modulus, e), at_limit
