"""The equation that the library is one function over.

    norms, rescale = measure(updates)
    limits, state = threshold(norms, state)
    updates = rescale(shrink(norms, limits))

A measure says which blocks a gradient has and how large they are, a threshold how large a block may
be, a shrink what to do about it. A clipping method is a choice of the three.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from . import shrinks
from .leaves import scale
from .measures import Measure, Norms, whole
from .metrics import ClipMetrics, initial, observed, pooled, share
from .norms import lp, on_one_device
from .shrinks import Shrink
from .thresholds import Limitable, Now, Threshold, as_threshold, checked

Nonfinite = Literal["propagate", "zero"]


class NonfiniteOptions(TypedDict, total=False):
    """The keyword arguments that every named method hands on to `clip`."""

    nonfinite: Nonfinite
    name: str


class ClipOptions(NonfiniteOptions, total=False):
    """Those of a method that leaves the shrink open."""

    shrink: Shrink


class ClipState(NamedTuple):
    """The state of a clip: arrays only, of structure, shapes and dtypes that never change.

    Attributes:
      step: the number of updates so far.
      thresholds: the state of the threshold of each array of blocks, in the order of the norms.
      metrics: what the clip did, under its name.
    """

    step: Int[Array, ""]
    thresholds: tuple
    metrics: dict[str, ClipMetrics]


def clip(
    measure: Measure,
    threshold: PyTree[Limitable | None],
    shrink: Shrink = shrinks.hard,
    *,
    nonfinite: Nonfinite = "propagate",
    name: str = "clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies every block of the updates by a factor.

    $$u_b = s(n_b, \tau_b)\,g_b, \qquad n_b = \|g_b\|$$

    Args:
      measure: which blocks there are, and their norms $n_b$.
      threshold: how large a block may be, $\tau_b$: a number, an array, a schedule, a `Threshold`,
        None for no limit, or a tree of these that is a prefix of the norms.
      shrink: the factor $s$ of a block, given its norm and its limit.
      nonfinite: what becomes of a block that holds nan or infinity. `"propagate"` makes all of it
        nan, so that it cannot hide; `"zero"` makes all of it zero. Either way it is counted in the
        metrics, and the threshold does not learn from it.
      name: the key of this clip in `jaxclip.metrics`.

    Returns:
      The transformation, to be chained ahead of an optimizer.

    Raises:
      TypeError: a limit is no number, array, schedule or threshold.
      ValueError: a limit is negative or nan, or `nonfinite` is neither of the two; at `init`, if
        the limits are no prefix of the norms; at an update, if `params` is wanted and missing.

    Example:
      >>> import jax.numpy as jnp, jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.per_leaf(), 1.0, jaxclip.shrinks.smooth)
      >>> gradient = {"w": jnp.array([3.0, 4.0])}
      >>> updates, state = tx.update(gradient, tx.init(gradient))
      >>> print(updates["w"])
      [0.5       0.6666667]
    """
    if nonfinite not in ("propagate", "zero"):
        raise ValueError(
            f"`nonfinite` is {nonfinite!r}, but a block that holds nan or infinity can be made all "
            'nan or all zero: give "propagate" or "zero".'
        )
    thresholds = as_thresholds(threshold)
    reads_params = any(one.reads_params for one in _leaves(thresholds))

    def init(params: optax.Params) -> ClipState:
        with on_one_device():  # `init` runs outside of the map that `across` is for
            norms = jax.eval_shape(lambda updates: measure(updates)[0], params)
        dtypes = [norm.dtype for norm in jax.tree.leaves(norms)]
        dtype = max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))
        states = tuple(
            _over_blocks(one.init, norm.ndim)(jnp.zeros_like(norm, dtype))
            for one, norm in matched(thresholds, norms)
        )
        return ClipState(jnp.zeros((), jnp.int32), states, {name: initial(dtype)})

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipState]:
        norms, rescale = measure(updates)
        blocks, structure = matched(thresholds, norms), jax.tree.structure(norms)
        dtype = state.metrics[name].norm.dtype
        norms = [norm.astype(dtype) for _, norm in blocks]
        param_norms = _param_norms(measure, updates, params, dtype) if reads_params else norms

        def one_block(one: Threshold, norm: Array, threshold_state: Any, param_norm: Array) -> Any:
            finite = jnp.isfinite(norm)
            now = Now(state.step, param_norm if reads_params else None, extra_args)
            limit, learned = one.update(jnp.where(finite, norm, 0), threshold_state, now)
            limit = jnp.maximum(jnp.asarray(limit, dtype), 0)
            learned = jax.tree.map(partial(jnp.where, finite), learned, threshold_state)
            return limit, _factor(shrink, norm, limit, nonfinite), learned

        decided = [
            _over_blocks(partial(one_block, one), norm.ndim)(norm, threshold_state, param_norm)
            for (one, _), norm, threshold_state, param_norm in zip(
                blocks, norms, state.thresholds, param_norms, strict=True
            )
        ]
        limits, factors, threshold_states = zip(*decided, strict=True) if decided else ((),) * 3
        clipped_norms = [jnp.where(f == 0, 0, n * f) for n, f in zip(norms, factors, strict=True)]
        shrunk = [(f < 1) & jnp.isfinite(n) for n, f in zip(norms, factors, strict=True)]
        step = state.step + 1
        sizes = pooled(norms, clipped_norms, limits)
        seen = observed(state.metrics[name], sizes, share(shrunk), step)
        updates = rescale(structure.unflatten(factors))
        return updates, ClipState(step, threshold_states, {name: seen})

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(tree: PyTree, ord: float = 2) -> Any:
    r"""The norm of a whole tree, in float32 at least, right wherever the result can be represented.

    $$\|g\|_p = \Big(\sum_l \sum_i |g_{l,i}|^p\Big)^{1/p}$$

    Args:
      tree: arrays of any dtype; integers and None are not counted.
      ord: $p$, from 1 to `math.inf`.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> gradient = {"w": jnp.array([6e25]), "b": jnp.array([8e25])}
      >>> print(f"{global_norm(gradient):.3g}")
      1e+26
    """
    return whole(lp(ord))(tree)[0]


def scale_to_norm(tree: PyTree, norm: Any, limit: Any) -> PyTree:
    r"""Scales a tree down to a limit, where the norm that you measured is beyond it.

    $$u = g \min\Big(1, \frac{\tau}{n}\Big)$$

    Args:
      tree: arrays of any dtype.
      norm: $n$, as `global_norm` returns it, or that of a larger tree that this one is a part of.
      limit: $\tau$, a number or a scalar array.

    Returns:
      The scaled tree; where the norm is nan or infinite, all of it nan.

    Example:
      >>> import jax.numpy as jnp
      >>> gradient = jnp.array([3.0, 4.0])
      >>> print(scale_to_norm(gradient, global_norm(gradient), 1.0))
      [0.6 0.8]

    Source:
      `torch.nn.utils.clip_grads_with_norm_`.
    """
    norm = jnp.asarray(norm)
    limit = jnp.maximum(jnp.asarray(checked("limit", limit), norm.dtype), 0)
    factor = _factor(shrinks.hard, norm, limit, "propagate")
    return jax.tree.map(lambda x: scale(x, factor), tree)


def _factor(shrink: Shrink, norm: Array, limit: Array, nonfinite: Nonfinite) -> Array:
    finite = jnp.isfinite(norm)
    factor = shrink(jnp.where(finite, norm, 0), limit)
    return jnp.where(finite, factor, 0 if nonfinite == "zero" else jnp.nan)


def as_thresholds(limits: PyTree[Limitable | None]) -> PyTree[Threshold]:
    """Turns every limit of a tree into a threshold; None becomes infinity."""
    return jax.tree.map(
        lambda limit: as_threshold(math.inf if limit is None else limit), limits, is_leaf=_is_limit
    )


def given_limits(
    thresholds: PyTree[Threshold], arrays: PyTree[Array], step: Int[Array, ""], dtype: jnp.dtype
) -> list[Array]:
    """The limit of each array, by thresholds that neither look at a norm nor remember any."""
    zero, now = jnp.zeros((), dtype), Now(step, None, {})
    return [
        jnp.maximum(jnp.asarray(one.update(zero, (), now)[0], dtype), 0)
        for one, _ in matched(thresholds, arrays)
    ]


def is_threshold(x: Any) -> bool:
    """Whether `x` is a threshold, a leaf in a tree of limits."""
    return isinstance(x, Threshold)


def _over_blocks(of_one_block: Callable, ndim: int) -> Callable:
    """Maps a function of one block over an array of blocks of any rank."""
    for _ in range(ndim):
        of_one_block = jax.vmap(of_one_block)
    return of_one_block


def _param_norms(
    measure: Measure, updates: optax.Updates, params: optax.Params | None, dtype: jnp.dtype
) -> list[Array]:
    if params is None:
        raise ValueError(
            "`params` is missing, but the limit is relative to the parameters' norms. Call "
            "`update(updates, state, params)`."
        )
    # A parameter whose update is None, as Equinox has it for what is not trained, has no block.
    trained = jax.tree.map(
        lambda u, p: None if u is None else p, updates, params, is_leaf=lambda x: x is None
    )
    return [norm.astype(dtype) for norm in jax.tree.leaves(measure(trained)[0])]


def matched(thresholds: PyTree, norms: Norms) -> list[tuple[Threshold, Any]]:
    """Each array of blocks, with the threshold that the tree of thresholds has for it."""
    if (
        isinstance(thresholds, dict)
        and isinstance(norms, dict)
        and thresholds.keys() != norms.keys()
    ):
        unknown = [key for key in thresholds if key not in norms]
        unlimited = [key for key in norms if key not in thresholds]
        problem = f"unknown: {unknown}" if unknown else f"without a limit: {unlimited}"
        raise ValueError(
            f"The limits do not match the blocks, which are {list(norms)} ({problem}). Give each "
            "of these a limit; None means unlimited."
        )
    try:
        spread = jax.tree.broadcast(thresholds, norms, is_leaf=is_threshold)
    except ValueError as error:
        given = jax.tree.structure(thresholds, is_leaf=is_threshold)
        raise ValueError(
            f"The limits have the structure {given}, which is no prefix of that of the norms, "
            f"{jax.tree.structure(norms)}. Give one limit for all, or a limit for every block."
        ) from error
    return list(zip(_leaves(spread), jax.tree.leaves(norms), strict=True))


def _leaves(thresholds: PyTree) -> list[Threshold]:
    return jax.tree.leaves(thresholds, is_leaf=is_threshold)


def _is_limit(x: Any) -> bool:
    return x is None or is_threshold(x) or callable(x)
