"""Methods whose limit comes from the norms of the last steps, or from a quantile of them."""

from typing import Unpack

import numpy as np
import optax

from .. import measures, thresholds
from ..core import ClipOptions, clip
from ..thresholds import Number, check_number
from .named import named_method


@named_method("window")
def autoclip(
    percentile: Number = 10.0, *, window: int = 1024, **options: Unpack[ClipOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the global norm to a percentile of the norms seen, the present one included.

    $$u = g \min\Big(1, \frac{\tau}{\|g\|}\Big), \qquad \tau = P_p(n_1, \dots, n_t)$$

    Args:
      percentile: $p$, from 0 to 100. About 100 - $p$ percent of the steps are clipped.
      window: how many of the last norms count; the authors count all. The state holds twice as many
        numbers. `clip_by_quantile` tracks a quantile with a single one.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation.

    Examples:
      >>> import optax
      >>> tx = optax.chain(autoclip(10.0), optax.adam(1e-3))

    Source:
      Seetharaman, Wichern, Pardo, Le Roux 2020, arXiv 2007.14469.
    """
    if isinstance(percentile, float | np.floating) and 0 < percentile < 1:
        raise ValueError(
            f"`percentile` is {percentile}, on a scale from 0 to 100. For the quantile "
            f"{percentile} give {100 * percentile:g}."
        )
    share = check_number("percentile", percentile, at_most=100) / 100
    return clip(measures.whole(), thresholds.quantile(share, window=window), **options)


@named_method("window")
def clip_by_history(
    sigma: Number = 3.0, *, window: int = 128, **options: Unpack[ClipOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the global norm to some standard deviations above the mean of the last norms.

    $$u = g \min\Big(1, \frac{\mu + k\,\sigma}{\|g\|}\Big)$$

    Args:
      sigma: $k$.
      window: how many of the norms before this one, unclipped, $\mu$ and $\sigma$ are taken of.
        There is no limit before there are half as many.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state holds as many numbers as the window.

    Examples:
      >>> import optax
      >>> tx = optax.chain(optax.scale_by_adam(), clip_by_history(), optax.scale(-1e-3))

    Source:
      `clip_update_by_historical_norm` of Levanter.
    """
    return clip(measures.whole(), thresholds.history(sigma, window=window), **options)


@named_method()
def clip_by_quantile(
    quantile: Number = 0.5,
    *,
    rate: Number = 0.2,
    initial: Number = 0.1,
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the global norm to a quantile of the norms, tracked with a single number.

    $$u = g \min\Big(1, \frac{\tau_t}{\|g\|}\Big), \qquad
    \tau_{t+1} = \tau_t \exp(-\eta\,(\mathbf 1[\|g\| \le \tau_t] - q)), \qquad \tau_1 = C$$

    Args:
      quantile: $q$, from 0 to 1, the share of the steps that are to pass unclipped.
      rate: $\eta$.
      initial: $C > 0$.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation; its state holds a number, where that of `autoclip` holds a window.

    Examples:
      >>> import optax
      >>> tx = optax.chain(clip_by_quantile(0.9, initial=1.0), optax.sgd(0.1))

    Source:
      Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv 1905.03871.
    """
    limit = thresholds.geometric_quantile(quantile, rate=rate, initial=initial)
    return clip(measures.whole(), limit, **options)
