"""The equation that the library is one function over.

    norms, rescale = measure(updates)
    limits, state = threshold(norms, state)
    updates = rescale(shrink(norms, limits))

A measure says which blocks a gradient has and how large they are, a threshold how large a block may
be, a shrink what to do about it. A clipping method is a choice of the three:

    clip_by_global_norm(1.0) = clip(measures.whole(), 1.0)
    adaptive_grad_clip(0.01) = clip(measures.per_unit(), thresholds.relative(0.01))
    drop_spikes(4.0)         = clip(measures.whole(), thresholds.ema(4.0, decay=0.99), shrinks.drop)
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from . import measures, shrinks
from .arguments import check_leaves, check_params, check_state, given_norm, known
from .bits import not_negative
from .clip_metrics import ClipMetrics, Seen, initial, observe, pool, share
from .devices import on_mesh_of
from .leaves import Factor, donatable, is_none, places, scale
from .measures import FullRange, Measure, Norms, Rescale, apply_factors, whole, within
from .norms import lp, working_dtype
from .scope import AxisName, Mask, Scope
from .shrinks import Nonfinite, Shrink, block_factor
from .thresholds import LimitLike, check_choice, check_number
from .thresholds.tree import limit_tree

Detail = Literal["summary", "blocks"]


class NonfiniteOptions(TypedDict, total=False):
    """The keyword arguments that every named method hands on to `clip`."""

    nonfinite: Nonfinite
    axis_name: AxisName
    measure_mask: Mask
    apply_mask: Mask
    name: str
    detail: Detail


class ClipOptions(NonfiniteOptions, total=False):
    """Those of a method that leaves the shrink open."""

    shrink: Shrink


class ClipState(NamedTuple):
    """The state of a clip: arrays only, of structure, shapes and dtypes that never change.

    Attributes:
      step: the number of updates so far.
      thresholds: what the threshold remembers, each of its fields in the structure of the norms;
        empty where it remembers nothing. Of a tree of limits, a tree of these.
      metrics: what the clip did, under its name.
    """

    step: Int[Array, ""]
    thresholds: PyTree
    metrics: dict[str, ClipMetrics]


def clip(
    measure: Measure,
    threshold: PyTree[LimitLike | None],
    shrink: Shrink = shrinks.hard,
    *,
    nonfinite: Nonfinite = "propagate",
    axis_name: AxisName = None,
    measure_mask: Mask = None,
    apply_mask: Mask = None,
    name: str = "clip",
    detail: Detail = "summary",
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies every block of the updates by a factor.

    $$u_b = s(n_b, \tau_b)\,g_b, \qquad n_b = \|g_b\|$$

    Args:
      measure: which blocks there are, and their norms $n_b$.
      threshold: how large a block may be, $\tau_b$: a number, an array, a schedule, a `Threshold`,
        or a tree of these that is a prefix of the norms, where None means unlimited.
      shrink: the factor $s$ of a block, given its norm and its limit.
      nonfinite: what becomes of a block that holds nan or infinity. `"propagate"` makes all of it
        nan, so that it cannot hide; `"zero"` makes all of it zero. Either way it is counted in the
        metrics, and the threshold does not learn from it.
      axis_name: within `shard_map` or `pmap`, the mapped axes that the leaves are spread over: a
        name, a tuple of names, a `PartitionSpec`, or a tree of these that is a prefix of the
        updates. Norms and metrics are those of all devices along them, and the same on each. `()`
        is for a device that is on its own. Where nothing is said, `shard_map` must not know that
        a leaf varies.
      measure_mask: which leaves are measured: a tree of bools that is a prefix of the updates, or
        a function of the path, such as `lambda path: "router" in path`, where the path of a leaf
        is a string such as `"layers/0/kernel"`. None is all. A leaf that is not measured counts
        in no norm, and is scaled by that of its group or of the whole tree.
      apply_mask: which leaves are scaled, likewise. Blocks within a leaf, as entries and units and
        the leaf itself, want it in both masks; what is in one alone has no block and passes.
      name: the key of this clip in `jaxclip.metrics`.
      detail: what the metrics hold. `"summary"` is a dozen numbers; `"blocks"` adds the norm and
        the limit of every block, by name.

    Returns:
      The transformation, to be chained ahead of an optimizer. Its `update` takes the loss as
      `value=` or `loss=`, for thresholds that want it. Where the whole tree is one block, a norm
      that the caller has already may be given as `grad_norm=`, and takes the place of the pass that
      computes it: the norm of what this clip is given, and not of a gradient that something before
      it in the chain has changed.

    Raises:
      TypeError: a limit is no number, array, schedule or threshold, or the measure or the shrink is
        no function; at an update, if the state is not from this clip's `init`.
      ValueError: a limit is negative or nan, or `nonfinite` or `detail` is unknown; at `init`, if
        the limits are no prefix of the norms; at an update, if `params` is wanted and missing, if
        the updates lack an array that `init` had, or if a leaf varies over a mapped axis and
        `axis_name` does not say what to do about it.

    Examples:
      >>> import jax.numpy as jnp, jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.per_leaf(), 1.0, jaxclip.shrinks.smooth)
      >>> gradient = {"w": jnp.array([3.0, 4.0])}
      >>> updates, state = tx.update(gradient, tx.init(gradient))
      >>> print(updates["w"])
      [0.5       0.6666667]
    """
    check_nonfinite(nonfinite)
    check_choice("detail", detail, "summary", "blocks")
    _check_parts(measure, threshold, shrink)
    thresholds = limit_tree(threshold)
    scope = Scope(axis_name, measure_mask, apply_mask)
    shapes_only = within(measure, dataclasses.replace(scope, shapes_only=True, by_leaf=True))
    scoped = within(measure, scope)

    def init(params: optax.Params) -> ClipState:
        def shapes(updates: optax.Updates) -> tuple[Norms, Any]:
            norms, way = shapes_only(updates)
            return norms, _by_name(_full_range(way), norms, norms, detail)

        norms, by_name = on_mesh_of(params, jax.eval_shape(shapes, params))
        dtypes = [norm.dtype for norm in jax.tree.leaves(norms)]
        dtype = max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))
        return donatable(
            ClipState(
                jnp.zeros((), jnp.int32),
                thresholds.init(norms, dtype),
                {name: initial(dtype, *by_name)},
            )
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipState]:
        before = check_update(updates, state, params, name)
        dtype = before.norm.dtype
        wide = partial(jax.tree.map, lambda norm: norm.astype(dtype))
        extra_args = known(extra_args)
        given = given_norm(extra_args, dtype)
        by_leaf = given is None or detail == "blocks"
        now = dataclasses.replace(scope, grad_norm=given, by_leaf=by_leaf)
        norms, way = within(measure, now)(updates)
        norms = wide(norms)
        param_norms = (
            wide(_param_norms(scoped, updates, params)) if thresholds.reads_params else norms
        )
        limits, remembered = thresholds.update(
            norms, state.thresholds, param_norms, state.step, extra_args
        )
        factors = jax.tree.map(lambda n, t: block_factor(shrink, n, t, nonfinite), norms, limits)
        seen = _observation(_full_range(way), norms, limits, factors, detail)
        return apply_factors(way, factors), next_state(state, name, remembered, seen)

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(tree: PyTree, ord: float = 2, *, axis_name: AxisName = None) -> Any:
    r"""The norm of a whole tree, in float32 at least, right wherever the result can be represented.

    $$\|g\|_p = \Big(\sum_l \sum_i |g_{l,i}|^p\Big)^{1/p}$$

    Args:
      tree: arrays of any dtype; integers and None are not counted.
      ord: $p$, from 1 to `math.inf`.
      axis_name: the mapped axes that the leaves are spread over, as in `clip`.

    Returns:
      A scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> gradient = {"w": jnp.array([6e25]), "b": jnp.array([8e25])}
      >>> print(f"{global_norm(gradient):.3g}")
      1e+26
    """
    return measured_norm(tree, Scope(axis_name), ord)


def measured_norm(tree: PyTree, scope: Scope, ord: float = 2) -> Array:
    """The norm of the leaves of a tree that are measured."""
    return whole(lp(ord))(tree, scope)[0]


def scale_to_norm(tree: PyTree, norm: Any, limit: Any) -> PyTree:
    r"""Scales a tree down to a limit, where the norm that you measured is beyond it.

    $$u = g \min\Big(1, \frac{\tau}{n}\Big)$$

    Args:
      tree: arrays of any dtype.
      norm: $n$, as `global_norm` returns it, or that of a larger tree that this one is a part of.
      limit: $\tau$, a number or a scalar array.

    Returns:
      The scaled tree; where the norm is nan or infinite, all of it nan.

    Examples:
      >>> import jax.numpy as jnp
      >>> gradient = jnp.array([3.0, 4.0])
      >>> print(scale_to_norm(gradient, global_norm(gradient), 1.0))
      [0.6 0.8]

    Source:
      `torch.nn.utils.clip_grads_with_norm_`.
    """
    norm = jnp.asarray(norm)
    dtype = norm.dtype if jnp.issubdtype(norm.dtype, jnp.inexact) else jnp.dtype(jnp.float32)
    norm = norm.astype(working_dtype(dtype))
    limit = not_negative(jnp.asarray(check_number("limit", limit), norm.dtype))
    factor = block_factor(shrinks.hard, norm, limit, "propagate")
    return jax.tree.map(lambda x: scale(x, factor), tree)


def scope_of(options: NonfiniteOptions) -> Scope:
    """What the options of a method say about the leaves."""
    return Scope(options.get("axis_name"), options.get("measure_mask"), options.get("apply_mask"))


def check_nonfinite(nonfinite: Any) -> None:
    """Rejects an unknown `nonfinite`."""
    if nonfinite not in ("propagate", "zero"):
        raise ValueError(
            f"`nonfinite` is {nonfinite!r}, but a block that holds nan or infinity can be made all "
            'nan or all zero: give "propagate" or "zero".'
        )


def next_state(state: ClipState, name: str, thresholds: PyTree, seen: Seen) -> ClipState:
    """The state after one more update.

    Args:
      state: the state before it.
      name: of the clip.
      thresholds: what the thresholds remember now.
      seen: what the metrics are to hold.
    """
    step = state.step + 1
    return ClipState(step, thresholds, {name: observe(state.metrics[name], seen, step)})


def _full_range(way: Rescale) -> FullRange:
    """The way back, of which nothing more is known where the measure is one's own."""
    return way if isinstance(way, FullRange) else FullRange(way)


def _observation(
    way: FullRange,
    norms: Norms,
    limits: PyTree[Array],
    factors: PyTree[Factor],
    detail: Detail,
) -> Seen:
    """What the metrics hold of a step."""
    n, t, f = map(jax.tree.leaves, (norms, limits, factors))
    pairs = list(zip(n, f, strict=True))
    clipped_norms = [jnp.where(factor.first == 0, 0, factor.times(norm)) for norm, factor in pairs]
    shrunk = [(factor.first < 1) & jnp.isfinite(norm) for norm, factor in pairs]
    [norm, clipped_norm, limit], leaves = pool(n, clipped_norms, t, apart=way.apart)
    where = None if way.named else places(norms if way.leaves is None else way.measured)
    return Seen(
        norm,
        clipped_norm,
        limit,
        share(shrunk, way.apart),
        leaves if way.leaves is None else way.leaves,
        where,
        *_by_name(way, norms, limits, detail),
    )


def _by_name(
    way: FullRange, norms: Norms, limits: PyTree[Array], detail: Detail
) -> tuple[PyTree[Array], PyTree[Array]]:
    """The norms and the limits that the metrics hold by name."""
    if detail == "summary" and not way.named:
        return (), ()
    if way.leaves is not None:
        return jax.tree.unflatten(jax.tree.structure(way.measured), list(way.leaves)), ()
    return (_mean(norms, way), _mean(limits, way)) if way.fine else (norms, limits)


def _mean(tree: PyTree[Array], way: FullRange) -> PyTree[Array]:
    """The root mean square of what the blocks of each leaf have."""
    blocks, structure = jax.tree.flatten(tree)
    apart = way.apart or [()] * len(blocks)
    pooled = [pool([x], apart=[names]) for x, names in zip(blocks, apart, strict=True)]
    return structure.unflatten([mean for [mean], _ in pooled])


def check_update(
    updates: optax.Updates, state: Any, params: optax.Params | None, name: str
) -> ClipMetrics:
    """Checks what an `update` is given, and returns the metrics in the state.

    Raises:
      TypeError: the state is not that of the clip.
      ValueError: there are parameters, and they have other leaves than the updates.
    """
    check_state(state, ClipState, f"the clip {name!r}")
    if params is not None:
        check_leaves(updates, params, "the parameters have")
    if name not in state.metrics:
        raise TypeError(
            f"The state is that of the clip {next(iter(state.metrics))!r}, and this is {name!r}: "
            "hand each the state that its own `init` returns."
        )
    return state.metrics[name]


def _param_norms(measure: Measure, updates: optax.Updates, params: optax.Params | None) -> Norms:
    params = check_params(updates, params, "the limit is relative to the norms of the parameters")
    # A parameter whose update is None, as Equinox has it for what is not trained, has no block.
    trained = jax.tree.map(lambda u, p: None if u is None else p, updates, params, is_leaf=is_none)
    return measure(trained)[0]


def _check_parts(measure: Any, threshold: Any, shrink: Any) -> None:
    makers = (measures.whole, measures.per_leaf, measures.per_unit, measures.per_entry)
    makers += (measures.per_slice, measures.per_group, measures.singular_values)
    if any(measure is maker for maker in makers):  # a measure may have no hash
        raise TypeError(
            f"`measure` is the function `measures.{measure.__name__}`, which makes a measure. Call "
            f"it: `measures.{measure.__name__}(...)`."
        )
    for name, part, example in (
        ("measure", measure, "measures.whole()"),
        ("shrink", shrink, "shrinks.smooth"),
    ):
        if not callable(part):
            raise TypeError(
                f"`{name}` is {part!r}, which is no function. Give one, as `{example}`."
            )
    if threshold is None:
        raise TypeError(
            "The limit is None, which means unlimited in a tree of limits, but here would leave "
            "the clip without any effect. Give a number; `math.inf` means unlimited."
        )
