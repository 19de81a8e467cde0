"""Wrappers that skip steps or carry the clipped remainder."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.experimental import checkify
from jaxtyping import Array, Bool, Int, PyTree

from . import norms
from .arguments import check_leaves, check_state, given_loss, given_norm, known
from .clip_metrics import ClipMetrics, Seen, initial, observe
from .core import measured_norm
from .leaves import as_arrays, donatable, is_measured, is_none, places
from .measures import whole
from .scope import AxisName, Scope
from .thresholds import check_choice, check_number
from .thresholds.base import check_whole_number
from .thresholds.windows import Window, empty, mean_and_deviation, push


class ErrorFeedbackState(NamedTuple):
    """The state of `with_error_feedback`: the inner one, and the remainder clipped away so far."""

    inner: optax.OptState
    carry: PyTree[Array]


def with_error_feedback(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the clipped remainder to the next gradient, so that nothing is lost.

    $$u_t = \mathrm{inner}(g_t + \Delta_t), \qquad \Delta_{t+1} = g_t + \Delta_t - u_t, \qquad
    \Delta_1 = 0$$

    so that $\sum_t u_t = \sum_t g_t - \Delta_{T+1}$.

    Args:
      inner: a clip, or any transformation that returns a part of its input.

    Returns:
      The transformation; its state holds $\Delta$, as large as the parameters, in float32 at least.
      What is not finite is not carried on, and a sum beyond the range of its dtype is the largest
      number of it. A spike of a thousand times the limit is given out over a thousand steps.

    Examples:
      >>> import jax.numpy as jnp, jaxclip
      >>> tx = with_error_feedback(jaxclip.clip_by_global_norm(1.0))
      >>> state = tx.init(jnp.zeros(2))
      >>> first, state = tx.update(jnp.array([3.0, 4.0]), state)
      >>> print(first + state.carry)
      [3. 4.]

    Source:
      Elesedy, Hutter 2023 (U-Clip), arXiv 2302.02971.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> ErrorFeedbackState:
        carry = jax.tree.map(
            lambda p: jnp.zeros_like(p, norms.working_dtype(p.dtype)) if is_measured(p) else None,
            as_arrays(params),
        )
        return donatable(ErrorFeedbackState(inner.init(params), carry))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ErrorFeedbackState]:
        check_state(state, ErrorFeedbackState, "`with_error_feedback`")
        check_leaves(updates, state.carry, "`init` saw")
        updates = as_arrays(updates)
        wanted = jax.tree.map(_plus, updates, state.carry, is_leaf=is_none)
        given, inner_state = inner.update(wanted, state.inner, params, **extra_args)
        carry = jax.tree.map(_left, updates, state.carry, given, is_leaf=is_none)
        return given, ErrorFeedbackState(inner_state, carry)

    return optax.GradientTransformationExtraArgs(init, update)


def _plus(update: Any, carry: Any) -> Any:
    if carry is None or update is None:
        return update
    # Nothing carried, nothing changed: not the sign of a zero, nor a subnormal number.
    return jnp.where(carry == 0, update, _sum(update, carry).astype(update.dtype))


def _left(update: Any, carry: Any, given: Any) -> Any:
    if carry is None or update is None:
        return carry
    left = _sum(update, carry) - given.astype(carry.dtype)
    return jnp.where(jnp.isfinite(left), left, carry)


def _sum(update: Array, carry: Array) -> Array:
    """The sum in the dtype of the carry, and in the range of that of the update."""
    update, dtype = update.astype(carry.dtype), update.dtype
    total = update + carry
    if jnp.iscomplexobj(total):  # half of what is out of range is in range, and has its direction
        within = jnp.where(jnp.isfinite(jnp.abs(total)), total, update / 2 + carry / 2)
    else:
        most = float(jnp.finfo(dtype).max)
        within = jnp.clip(total, -most, most)
    return jnp.where(jnp.isfinite(update), within, total)


class SkipNonfiniteState(NamedTuple):
    """The state of `skip_nonfinite`.

    Attributes:
      inner: that of the optimizer inside.
      step: the number of updates so far.
      consecutive: how many steps in a row were not finite up to now.
      stopped: whether `on_limit="raise"` has stopped the training.
      metrics: of the gradient, under the name of the wrapper.
    """

    inner: optax.OptState
    step: Int[Array, ""]
    consecutive: Int[Array, ""]
    stopped: Bool[Array, ""]
    metrics: dict[str, ClipMetrics]


def skip_nonfinite(
    inner: optax.GradientTransformation,
    *,
    max_consecutive: int | None = None,
    on_limit: Literal["apply", "raise"] = "apply",
    axis_name: AxisName = None,
    name: str = "skip_nonfinite",
) -> optax.GradientTransformationExtraArgs:
    r"""Skips a step whose gradient or loss holds nan or infinity: zero updates, a frozen state.

    A zero gradient would still move a parameter by momentum and weight decay, and let moments
    decay; a skipped step changes nothing.

    Args:
      inner: the whole optimizer, clip included.
      max_consecutive: how many steps in a row may be skipped. None is any number.
      on_limit: what becomes of the next. `"apply"` takes it, nan and all, so that the failure
        shows, as `optax.apply_if_finite` has it. `"raise"` stops: that step and all after it are
        skipped, and `stopped` in the state is true, for a loop on the host to read by
        `optax.tree.get(opt_state, "stopped")`. Outside of `jit` it raises at once; within `jit` it
        does so under `checkify.checkify`, and else cannot, as that would take a host callback.
      axis_name: the mapped axes that the leaves are spread over, as in `clip`: the devices along
        them skip a step together.
      name: the key in `jaxclip.metrics`, where `clipped` is 1 of a skipped step.

    Returns:
      The transformation. Its `update` takes the loss as `value=` or `loss=`, and the norm of the
      gradient as `grad_norm=` in place of a pass of its own.

    Raises:
      ValueError: `on_limit` is neither of the two, or `"raise"` without a limit; at an update, if
        `value` or `grad_norm` is more than one number.
      JaxRuntimeError: at an update outside of `jit`, after too many skipped steps.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx = skip_nonfinite(optax.adam(0.1))
      >>> params = jnp.ones(2)
      >>> print(tx.update(jnp.array([1.0, jnp.nan]), tx.init(params), params)[0])
      [0. 0.]

    Source:
      `optax.apply_if_finite`.
    """
    inner = optax.with_extra_args_support(inner)
    if max_consecutive is not None:
        check_whole_number("max_consecutive", max_consecutive, 0)
    check_choice("on_limit", on_limit, "apply", "raise")
    stops = on_limit == "raise"
    if stops and max_consecutive is None:
        raise ValueError(
            '`on_limit` is "raise", but `max_consecutive` is None, and any number of steps may be '
            "skipped. Give a number of steps."
        )

    def init(params: optax.Params) -> SkipNonfiniteState:
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        seen = {name: initial(_dtype(params))}
        return donatable(SkipNonfiniteState(inner.init(params), zero, zero, no, seen))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SkipNonfiniteState]:
        check_state(state, SkipNonfiniteState, "`skip_nonfinite`")
        extra_args = known(extra_args)
        seen, _ = _seen(updates, extra_args, axis_name, state.metrics[name].norm.dtype)
        step = state.step + 1
        consecutive = jnp.where(seen.nonfinite, state.consecutive + 1, 0)
        skip, stopped = consecutive > 0, state.stopped
        if max_consecutive is not None:
            beyond = consecutive > max_consecutive
            stopped = stopped | (beyond & stops)
            skip = (skip & ~beyond) | stopped
        if stops:
            _raise_if(stopped, f"More than {max_consecutive} steps in a row", step)
        metrics = _observed(state.metrics[name], seen, skip, step)
        taken, inner_state = inner.update(updates, state.inner, params, **extra_args)
        return _unless(skip, taken), SkipNonfiniteState(
            _frozen(skip, state.inner, inner_state), step, consecutive, stopped, {name: metrics}
        )

    return optax.GradientTransformationExtraArgs(init, update)


class SkipOnSpikeState(NamedTuple):
    """The state of `skip_on_spike`: the inner one, and the last norms and losses."""

    inner: optax.OptState
    step: Int[Array, ""]
    norms: Window
    losses: Window
    metrics: dict[str, ClipMetrics]


def skip_on_spike(
    inner: optax.GradientTransformation,
    *,
    sigma: float | Array = 6.0,
    window: int = 128,
    feed: Literal["within_limit", "raw"] = "within_limit",
    axis_name: AxisName = None,
    name: str = "skip_on_spike",
) -> optax.GradientTransformationExtraArgs:
    r"""Skips a step whose norm or loss is far beyond those of late.

    $$x_t > \mu + k \max(\sigma,\ \varepsilon \max_i |x_i|)
    \quad\text{for}\quad x = \|g\| \text{ or } x = \mathrm{loss}$$

    with mean $\mu$ and standard deviation $\sigma$ (unbiased) of the last $N$ accepted steps, and
    the machine epsilon $\varepsilon$, so that rounding is no spike. A step with nan or infinity is
    skipped as well; no other is until $\max(2, N/2) - 1$ steps have been accepted.

    Args:
      inner: the whole optimizer, clip included.
      sigma: $k$.
      window: $N$; the state holds twice as many numbers.
      feed: what the window takes in. With `"within_limit"` these are the steps that were taken and
        had a gradient other than zero, so that a lasting change of level beyond the limit stops the
        training for good; with `"raw"` all that are finite, as OLMo and MaxText have it.
      axis_name: the mapped axes that the leaves are spread over, as in `clip`: the devices along
        them skip a step together, by the mean of their losses.
      name: the key in `jaxclip.metrics`, where `clipped` is 1 of a skipped step.

    Returns:
      The transformation. Its `update` takes the loss as `value=` or `loss=`, without which the norm
      decides, and the norm of the gradient as `grad_norm=` in place of a pass of its own.

    Raises:
      ValueError: at an update, if `value` is more than one number.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx = skip_on_spike(optax.adam(0.1))
      >>> params = jnp.ones(2)
      >>> updates, state = tx.update(params, tx.init(params), params, value=jnp.array(0.5))

    Source:
      `SkipStepOptimizer` of OLMo-core, `skip_step_on_spikes` of MaxText.
    """
    inner = optax.with_extra_args_support(inner)
    sigma = check_number("sigma", sigma)
    check_choice("feed", feed, "within_limit", "raw")
    check_whole_number("window", window, 2)

    def init(params: optax.Params) -> SkipOnSpikeState:
        dtype = _dtype(params)
        step, nothing = jnp.zeros((), jnp.int32), empty(window, dtype)
        seen = {name: initial(dtype)}
        return donatable(SkipOnSpikeState(inner.init(params), step, nothing, nothing, seen))

    def limit(values: Window) -> Array:
        enough = values.seen + 1 >= max(2, window // 2)
        return jnp.where(enough, _beyond_usual(values, sigma), math.inf)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SkipOnSpikeState]:
        check_state(state, SkipOnSpikeState, "`skip_on_spike`")
        dtype = state.norms.values.dtype
        extra_args = known(extra_args)
        seen, loss = _seen(updates, extra_args, axis_name, dtype)
        seen = seen._replace(limit=limit(state.norms))
        norm, finite = seen.norm, ~jnp.asarray(seen.nonfinite)
        fits = finite & (norm <= seen.limit)
        if loss is not None:
            fits &= loss <= limit(state.losses)
        # A zero loss or norm says nothing about gradients: after zeros, every step is a spike.
        takes_in = fits & (norm > 0) if feed == "within_limit" else finite
        step = state.step + 1
        metrics = _observed(state.metrics[name], seen, ~fits, step)
        taken, inner_state = inner.update(updates, state.inner, params, **extra_args)
        return _unless(~fits, taken), SkipOnSpikeState(
            _frozen(~fits, state.inner, inner_state),
            step,
            _frozen(~takes_in, state.norms, push(state.norms, norm)),
            state.losses
            if loss is None
            else _frozen(~takes_in, state.losses, push(state.losses, loss)),
            {name: metrics},
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _beyond_usual(window: Window, sigma: float | Array) -> Array:
    """The mean of the values and some standard deviations, of which rounding is one at least."""
    mean, deviation = mean_and_deviation(window, ddof=1)
    info = jnp.finfo(mean.dtype)
    rounding = info.eps * jnp.max(jnp.abs(window.values)) + info.tiny
    return mean + jnp.asarray(sigma, mean.dtype) * jnp.maximum(deviation, rounding)


def _raise_if(stopped: Array, what: str, step: Int[Array, ""]) -> None:
    # Of the two checks of JAX one cannot be compiled without `checkify`, and one is silent there.
    check = checkify.debug_check if isinstance(stopped, Tracer) else checkify.check
    check(
        ~stopped,
        f"{what} were not finite, up to step {{step}}, and were skipped. Parameters and optimizer "
        "are as they were before: look at the data and the learning rate, and go on with `stopped` "
        "in the state set to False.",
        step=step,
    )


def _seen(
    updates: optax.Updates, extra_args: Mapping[str, Any], axis_name: AxisName, dtype: jnp.dtype
) -> tuple[Seen, Array | None]:
    """The norms of the gradient and, unless `grad_norm=` is given, of its leaves; and the loss."""
    given = given_norm(extra_args, dtype)
    scope = Scope(axis_name, grad_norm=given, by_leaf=given is None)
    norm, way = whole()(updates, scope)
    assert way.leaves is not None  # of the whole tree
    finite, loss = jnp.isfinite(norm), given_loss(extra_args, dtype)
    if loss is not None:
        loss = scope.everywhere(loss, "value")
        finite = finite & jnp.isfinite(loss)
    infinite, none = jnp.full((), jnp.inf, dtype), jnp.zeros((), dtype)
    seen = Seen(norm.astype(dtype), norm, infinite, none, way.leaves, places(way.measured))
    return seen._replace(nonfinite=~finite), loss


def _observed(before: ClipMetrics, seen: Seen, skip: Array, step: Int[Array, ""]) -> ClipMetrics:
    kept = jnp.where(skip, 0, seen.norm)
    return observe(before, seen._replace(clipped_norm=kept, clipped=skip.astype(kept.dtype)), step)


def _unless(skip: Array, updates: optax.Updates) -> optax.Updates:
    # By selection, not by a factor: 0 * nan is nan.
    return jax.tree.map(
        lambda u: jnp.where(skip, jnp.zeros_like(u), u) if is_measured(u) else u, updates
    )


def _frozen(skip: Array, before: Any, after: Any) -> Any:
    return jax.tree.map(lambda old, new: jnp.where(skip, old, new), before, after)


def _dtype(params: optax.Params) -> jnp.dtype:
    return jax.eval_shape(lambda p: measured_norm(p, Scope(shapes_only=True)), params).dtype
