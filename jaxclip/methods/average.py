"""Methods whose limit follows an average of the norms."""

from typing import Any, Literal, Unpack

import jax.numpy as jnp
import optax
from jaxtyping import Array

from .. import measures, shrinks, thresholds
from ..core import ClipOptions, NonfiniteOptions, clip, measured_norm, scope_of
from ..thresholds import Feed, LimitLike, Now, Number, Threshold, as_threshold, check_choice
from ..thresholds.averages import ALL_ZERO, second_moment
from ..thresholds.base import check_number, check_warmup
from .named import named_method


@named_method("rule", "feed", "limit")
def zclip(
    z: Number = 2.5,
    *,
    decay: Number = 0.97,
    warmup: int = 25,
    limit: LimitLike | None = 1.0,
    rule: Literal["adaptive", "mean", "cap"] = "adaptive",
    factor: Number = 1.0,
    feed: Feed = "clipped",
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the global norm where it is an outlier among those of late.

    $$u = g \min\Big(1, \frac{\tau}{\|g\|}\Big), \qquad
    \tau = \mu + \frac{z^2}{\zeta}\,\sigma \text{ where } \zeta = \frac{\|g\| - \mu}{\sigma} > z$$

    with moving mean $\mu$ and deviation $\sigma$ of the norms, as in `thresholds.zscore`.

    Args:
      z: the number of standard deviations beyond which a norm is an outlier.
      decay: of the moving moments, from 0 to 1.
      warmup: the number of norms that the first moments are taken of; until then `limit`
        alone is the limit.
      limit: a limit at all times; None for none.
      rule: `"adaptive"` as above; `"mean"` clips outliers to $\mu$, `"cap"` to $\mu + z\sigma$.
      factor: what the adaptive limit is multiplied by.
      feed: what enters the moments: the `"clipped"` norm, as the authors have it, which never
        follows a lasting change of level; the `"raw"` norm, which does; or, with `"within_limit"`,
        only norms that are no outliers (their `skip_update_on_spike`).
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state holds two numbers and a counter.

    Examples:
      >>> import optax
      >>> tx = optax.chain(zclip(), optax.adamw(1e-3))

    Source:
      Kumar, Owen, Roy Chowdhury, Güra 2025, arXiv 2504.02507; PyPI `zclip`, whose moments one nan
      makes nan for ever, where here it is not taken in.
    """
    own = thresholds.zscore(z, decay=decay, warmup=warmup, rule=rule, factor=factor, feed=feed)
    lowest = own if limit is None else thresholds.lowest(own, limit)
    return clip(measures.whole(), lowest, **options)


@named_method("feed", "axes")
def adagc(
    ratio: Number = 1.05,
    *,
    decay: Number = 0.98,
    warmup: int = 100,
    warmup_limit: LimitLike = 1.0,
    feed: Literal["clipped", "raw"] = "clipped",
    axes: measures.Axes = (),
    **options: Unpack[NonfiniteOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Clips every array to a little more than the moving average of its own clipped norm.

    $$u_l = g_l \min\Big(1, \frac{\lambda\,\gamma_{l,t-1}}{\|g_l\|}\Big), \qquad
    \gamma_{l,t} = \beta\,\gamma_{l,t-1} + (1 - \beta)\,\|u_l\|$$

    In the warm-up, $t < T$, the global norm is clipped instead, and $\gamma_l$ is the smallest
    $\|u_l\|$ so far.

    Args:
      ratio: $\lambda$.
      decay: $\beta$, from 0 to 1.
      warmup: $T$; the warm-up is of $T - 1$ steps.
      warmup_limit: of the global norm in the warm-up.
      feed: what enters $\gamma$. `"clipped"` is the paper: a lasting change of level takes many
        hundreds of steps to be followed. With `"raw"` $\gamma$ is the mean norm of the warm-up, and
        takes in $\|g_l\|$ then, which follows within a few half-lives.
      axes: the axes that are kept, such as `0` where `scan` stacked the layers, or a function of
        `(path, leaf)`: one block for every index along them. `()` is one for every array.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state holds a number and a counter for every array. Its `update` takes
      the global norm as `grad_norm=` where the caller has it already.

    Examples:
      >>> import optax
      >>> tx = optax.chain(adagc(), optax.adamw(1e-3))

    Source:
      Wang et al. 2025, arXiv 2502.11034, where one gradient of zero in the warm-up, such as that of
      an idle expert, or one spike, freezes the array for ever. Here a $\|u_l\|$ that is a thousand
      times smaller than that of the neighboring steps is left out of the smallest.
    """
    check_choice("feed", feed, "clipped", "raw")
    scope = scope_of(options)
    steps = max(warmup - 1, 0) if isinstance(check_warmup(warmup), int) else warmup - 1
    own = thresholds.ema(
        ratio,
        decay=decay,
        warmup=steps,
        start="smallest" if feed == "clipped" else "mean",
        feed=feed,
    )
    warming_up = thresholds.warmup_then(steps, _share_of_whole(warmup_limit), jnp.inf)
    inner = clip(measures.per_slice(axes), thresholds.cascade(warming_up, own), **options)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        if extra_args.get("grad_norm") is None:
            extra_args["grad_norm"] = measured_norm(updates, scope)
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _share_of_whole(limit: LimitLike) -> Threshold:
    r"""What a limit $\tau$ of the global norm leaves to a block: $n_l\,\tau / \|g\|$ beyond it."""
    whole = as_threshold(limit, name="warmup_limit")

    def update(norm: Array, state: Any, now: Now) -> tuple[Array, Any]:
        total = jnp.asarray(now.extra_args["grad_norm"], norm.dtype)
        limit, state = whole.update(total, state, now)
        limit = jnp.maximum(jnp.asarray(limit, norm.dtype), 0)
        own = jnp.where(total <= limit, jnp.inf, limit * (norm / jnp.where(total > 0, total, 1)))
        return jnp.where(jnp.isfinite(total), own, jnp.nan), state

    return Threshold(whole.init, update, whole.reads_params)


@named_method("feed", "axes")
def clip_by_norm_ratio(
    ratio: Number,
    *,
    decay: Number = 0.95,
    feed: Literal["clipped", "raw"] = "clipped",
    axes: measures.Axes = (),
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Clips every array to a multiple of the moving average of its own clipped norm.

    $$u_l = g_l \min\Big(1, \frac{\rho\,\gamma_{l,t-1}}{\|g_l\|}\Big), \qquad
    \gamma_{l,t} = \beta\,\gamma_{l,t-1} + (1 - \beta)\,\|u_l\|, \qquad \gamma_{l,1} = \|g_l\|$$

    Args:
      ratio: $\rho$.
      decay: $\beta$, from 0 to 1; OLMo takes the larger of the two of its Adam.
      feed: what enters $\gamma$: the `"clipped"` norm, or the `"raw"` one, which follows a lasting
        change of level faster.
      axes: the axes that are kept, such as `0` where `scan` stacked the layers, or a function of
        `(path, leaf)`: one block for every index along them. `()` is one for every array.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state holds a number and a counter for every array.

    Examples:
      >>> import optax
      >>> tx = optax.chain(clip_by_norm_ratio(1.5), optax.adamw(1e-3))

    Source:
      `max_grad_norm_ratio` of OLMo.
    """
    check_choice("feed", feed, "clipped", "raw")
    return clip(measures.per_slice(axes), thresholds.ema(ratio, decay=decay, feed=feed), **options)


@named_method("feed")
def spam_clip(
    ratio: Number = 5000.0,
    *,
    decay: Number = 0.999,
    warmup: int = 20,
    feed: Literal["clipped", "raw"] = "clipped",
    **options: Unpack[NonfiniteOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Clips every entry to a multiple of the root of its own second moment.

    $$u_i = \mathrm{sgn}(g_i) \min\big(|g_i|, \sqrt{\theta\,v_{i,t-1}}\big), \qquad
    v_{i,t} = \beta\,v_{i,t-1} + (1 - \beta)\,u_i^2$$

    Args:
      ratio: $\theta$.
      decay: $\beta$, that of the second moment of the Adam that follows.
      warmup: the first step that has a limit.
      feed: what enters $v$: the `"clipped"` entries, as the authors have it, or the `"raw"` ones,
        which follow a lasting change of level.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state is as large as the parameters.

    Examples:
      >>> import optax
      >>> tx = optax.chain(spam_clip(), optax.adam(1e-3))

    Source:
      Huang et al. 2025, arXiv 2501.06842, where $v$ is Adam's own, and an entry that is zero all
      through the warm-up stays zero; here it has no limit until it has been something.
    """
    limit = second_moment(ratio, decay=decay, warmup=warmup, feed=feed)
    return clip(measures.per_entry(), limit, **options)


@named_method("feed", "axes")
def limit_norm_growth(
    growth: Number = 1.01,
    *,
    feed: Literal["clipped", "raw"] = "clipped",
    axes: measures.Axes = (),
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Lets the norm of every array grow by no more than a factor a step.

    $$u_{l,t} = g_{l,t} \min\Big(1, \frac{\gamma\,(\|u_{l,t-1}\| + 10^{-8})}{\|g_{l,t}\|}\Big)$$

    Args:
      growth: $\gamma$.
      feed: whether it is the `"clipped"` norm of the step before that counts, as in the papers, or
        the `"raw"` one: after a gradient of zero, the first needs thousands of steps to come back.
      axes: the axes that are kept, such as `0` where `scan` stacked the layers, or a function of
        `(path, leaf)`: one block for every index along them. `()` is one for every array.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state holds a number and a counter for every array.

    Examples:
      >>> import optax
      >>> tx = optax.chain(optax.scale_by_adam(), limit_norm_growth(), optax.scale(-1e-3))

    Source:
      Chen et al. 2024 (Fira), arXiv 2410.01623; Zhu et al. 2024 (APOLLO), arXiv 2412.05270.
    """
    return clip(measures.per_slice(axes), thresholds.previous(growth, feed=feed), **options)


@named_method("feed")
def drop_spikes(
    factor: Number = 4.0,
    *,
    decay: Number = 0.99,
    feed: Feed = "clipped",
    **options: Unpack[NonfiniteOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the gradient zero where its norm is a multiple of the moving average of norms.

    $$u = g\,\mathbf 1[\|g\| \le k\,\gamma_{t-1}], \qquad
    \gamma_t = \beta\,\gamma_{t-1} + (1 - \beta) \min(\|g\|, k\,\gamma_{t-1})$$

    The optimizer still takes its step; `skip_on_spike` freezes it.

    Args:
      factor: $k$.
      decay: $\beta$, from 0 to 1.
      feed: what enters $\gamma$ of a spike: at most the limit, with `"clipped"`, so that a lasting
        change of level is accepted in time; all of it, with `"raw"`; nothing, with
        `"within_limit"`.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state holds a number and a counter.

    Examples:
      >>> import optax
      >>> tx = optax.chain(drop_spikes(), optax.sgd(0.1))

    Source:
      The rule `k` times the moving average of `skip_and_clip_by_global_norm` of axlearn.
    """
    limit = thresholds.ema(
        check_number("factor", factor, positive=ALL_ZERO), decay=decay, feed=feed
    )
    return clip(measures.whole(), limit, shrinks.drop, **options)
