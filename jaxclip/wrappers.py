"""Wrappers: what a factor for every block cannot do."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from . import norms
from .core import global_norm
from .leaves import is_measured
from .metrics import ClipMetrics, initial, observed
from .thresholds import checked, choice
from .thresholds.base import whole_number
from .thresholds.windows import Window, empty, mean_and_deviation, push


class ErrorFeedbackState(NamedTuple):
    """The state of `with_error_feedback`: the inner one, and what was clipped away so far."""

    inner: optax.OptState
    carry: PyTree[Array]


def with_error_feedback(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds what a clip takes away to the next gradient, so that nothing is lost.

    $$u_t = \mathrm{inner}(g_t + \Delta_t), \qquad \Delta_{t+1} = g_t + \Delta_t - u_t, \qquad
    \Delta_1 = 0$$

    so that $\sum_t u_t = \sum_t g_t - \Delta_{T+1}$.

    Args:
      inner: a clip, or any transformation that returns a part of what it is given.

    Returns:
      The transformation; its state holds $\Delta$, as large as the parameters, in float32 at least.
      What is not finite is not carried on.

    Example:
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
            params,
        )
        return ErrorFeedbackState(inner.init(params), carry)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ErrorFeedbackState]:
        wanted = jax.tree.map(_plus, updates, state.carry, is_leaf=_is_none)
        given, inner_state = inner.update(wanted, state.inner, params, **extra_args)
        carry = jax.tree.map(_left, updates, state.carry, given, is_leaf=_is_none)
        return given, ErrorFeedbackState(inner_state, carry)

    return optax.GradientTransformationExtraArgs(init, update)


def _plus(update: Any, carry: Any) -> Any:
    if carry is None:
        return update
    # Nothing carried, nothing changed: not the sign of a zero, nor a subnormal number.
    wanted = (update.astype(carry.dtype) + carry).astype(update.dtype)
    return jnp.where(carry == 0, update, wanted)


def _left(update: Any, carry: Any, given: Any) -> Any:
    if carry is None:
        return None
    left = update.astype(carry.dtype) + carry - given.astype(carry.dtype)
    return jnp.where(jnp.isfinite(left), left, carry)


class SkipNonfiniteState(NamedTuple):
    """The state of `skip_nonfinite`: the inner one, and the run of skipped steps up to now."""

    inner: optax.OptState
    step: Int[Array, ""]
    consecutive: Int[Array, ""]
    metrics: dict[str, ClipMetrics]


def skip_nonfinite(
    inner: optax.GradientTransformation,
    *,
    max_consecutive: int | None = None,
    name: str = "skip_nonfinite",
) -> optax.GradientTransformationExtraArgs:
    r"""Leaves a step out where the gradient holds nan or infinity: zero updates, a frozen state.

    A zero gradient would still move a parameter by momentum and weight decay, and let moments
    decay; a step that is left out has not been.

    Args:
      inner: the whole optimizer, clip included.
      max_consecutive: how many steps in a row may be left out; the next is taken, nan and all, so
        that the failure shows, as `optax.apply_if_finite` has it. None is any number.
      name: the key in `jaxclip.metrics`, where `clipped` is 1 of a step that is left out.

    Returns:
      The transformation.

    Example:
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
        whole_number("max_consecutive", max_consecutive, 0)

    def init(params: optax.Params) -> SkipNonfiniteState:
        zero = jnp.zeros((), jnp.int32)
        return SkipNonfiniteState(inner.init(params), zero, zero, {name: initial(_dtype(params))})

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SkipNonfiniteState]:
        norm = global_norm(updates)
        consecutive = jnp.where(jnp.isfinite(norm), 0, state.consecutive + 1)
        skip = consecutive > 0
        if max_consecutive is not None:
            skip &= consecutive <= max_consecutive
        step = state.step + 1
        seen = _observed(state.metrics[name], norm, jnp.asarray(jnp.inf), skip, step)
        taken, inner_state = inner.update(updates, state.inner, params, **extra_args)
        return _unless(skip, taken), SkipNonfiniteState(
            _frozen(skip, state.inner, inner_state), step, consecutive, {name: seen}
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
    feed: Literal["normal", "raw"] = "normal",
    name: str = "skip_on_spike",
) -> optax.GradientTransformationExtraArgs:
    r"""Leaves a step out where the norm or the loss is far beyond those of late.

    $$x_t > \mu + k\,\sigma \quad\text{for}\quad x = \|g\| \text{ or } x = \mathrm{loss}$$

    with mean $\mu$ and standard deviation $\sigma$ (unbiased) of the last $N$ accepted steps. A
    step with nan or infinity is left out as well; nothing else is before there are
    $\max(2, N/2) - 1$ of them.

    Args:
      inner: the whole optimizer, clip included.
      sigma: $k$.
      window: $N$; the state holds twice as many numbers.
      feed: what the window takes in: with `"normal"` the steps that were taken, so that a lasting
        change of level beyond the limit stops the training for good; with `"raw"` all that are
        finite, as OLMo and MaxText have it.
      name: the key in `jaxclip.metrics`, where `clipped` is 1 of a step that is left out.

    Returns:
      The transformation. Its `update` takes the loss as `value=`; without it the norm decides.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = skip_on_spike(optax.adam(0.1))
      >>> params = jnp.ones(2)
      >>> updates, state = tx.update(params, tx.init(params), params, value=jnp.array(0.5))

    Source:
      `SkipStepOptimizer` of OLMo-core, `skip_step_on_spikes` of MaxText.
    """
    inner = optax.with_extra_args_support(inner)
    sigma = checked("sigma", sigma)
    choice("feed", feed, "normal", "raw")
    whole_number("window", window, 2)

    def init(params: optax.Params) -> SkipOnSpikeState:
        dtype = _dtype(params)
        return SkipOnSpikeState(
            inner.init(params),
            jnp.zeros((), jnp.int32),
            empty(window, dtype),
            empty(window, dtype),
            {name: initial(dtype)},
        )

    def limit(values: Window) -> Array:
        mean, deviation = mean_and_deviation(values, ddof=1)
        enough = values.seen + 1 >= max(2, window // 2)
        return jnp.where(enough, mean + sigma * deviation, jnp.finfo(mean.dtype).max)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SkipOnSpikeState]:
        dtype = state.norms.values.dtype
        norm = global_norm(updates).astype(dtype)
        norm_limit = limit(state.norms)
        # Written so that nan is beyond every limit.
        fits = norm <= norm_limit
        finite = jnp.isfinite(norm)
        loss = extra_args.get("value")
        if loss is not None:
            loss = jnp.asarray(loss, dtype)
            fits &= loss <= limit(state.losses)
            finite &= jnp.isfinite(loss)
        takes_in = fits if feed == "normal" else finite
        step = state.step + 1
        seen = _observed(state.metrics[name], norm, norm_limit, ~fits, step)
        taken, inner_state = inner.update(updates, state.inner, params, **extra_args)
        return _unless(~fits, taken), SkipOnSpikeState(
            _frozen(~fits, state.inner, inner_state),
            step,
            _frozen(~takes_in, state.norms, push(state.norms, norm)),
            state.losses
            if loss is None
            else _frozen(~takes_in, state.losses, push(state.losses, loss)),
            {name: seen},
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _observed(
    before: ClipMetrics, norm: Array, limit: Array, skip: Array, step: Int[Array, ""]
) -> ClipMetrics:
    kept = jnp.where(skip, 0, norm)
    return observed(before, [norm, kept, limit], skip.astype(jnp.float32), step)


def _unless(skip: Array, updates: optax.Updates) -> optax.Updates:
    # By selection, not by a factor: 0 * nan is nan.
    return jax.tree.map(
        lambda u: jnp.where(skip, jnp.zeros_like(u), u) if is_measured(u) else u, updates
    )


def _frozen(skip: Array, before: Any, after: Any) -> Any:
    return jax.tree.map(lambda old, new: jnp.where(skip, old, new), before, after)


def _dtype(params: optax.Params) -> jnp.dtype:
    return jax.eval_shape(global_norm, params).dtype


def _is_none(x: Any) -> bool:
    return x is None
