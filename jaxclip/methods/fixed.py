"""Methods whose limit is given: a number, an array, a schedule, or a tree of these."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Unpack

import optax
from jaxtyping import PyTree

from .. import measures, norms, shrinks
from ..core import ClipOptions, NonfiniteOptions, clip
from ..thresholds import LimitLike, as_threshold, check_number
from ..thresholds.base import FINITE
from .named import named_method


@named_method("ord")
def clip_by_global_norm(
    limit: LimitLike, *, ord: float = 2, eps: float = 0.0, **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the whole gradient down to the limit, where its norm is beyond it.

    $$u = g \min\Big(1, \frac{\tau}{\|g\|_p + \epsilon}\Big)$$

    Args:
      limit: $\tau$.
      ord: $p$, from 1 to `math.inf`.
      eps: $\epsilon$; `1e-6` is what PyTorch has.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_global_norm(1.0)
      >>> gradient = {"w": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      {'b': Array([0.8], dtype=float32), 'w': Array([0.6], dtype=float32)}

    Source:
      Pascanu, Mikolov, Bengio 2012, arXiv 1211.5063.
    """
    # A norm that is infinite by its epsilon would be clipped to zero.
    shrink = partial(shrinks.hard, eps=check_number("eps", eps, at_most=FINITE))
    return clip(measures.whole(norms.lp(ord)), limit, shrink, **options)


@named_method("ord", "axes")
def clip_by_leaf_norm(
    limit: PyTree[LimitLike | None],
    *,
    ord: float = 2,
    axes: measures.Axes = (),
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Scales every array of the gradient down to the limit, where its norm is beyond it.

    $$u_l = g_l \min\Big(1, \frac{\tau}{\|g_l\|_p}\Big)$$

    Args:
      limit: $\tau$; a tree of limits may tell the arrays apart, None meaning unlimited.
      ord: $p$, from 1 to `math.inf`.
      axes: the axes that are kept, such as `0` where `scan` stacked the layers, or a function of
        `(path, leaf)`: one block for every index along them. `()` is one for every array.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_leaf_norm({"w": 1.0, "b": None})
      >>> gradient = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([9.0])}
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      {'b': Array([9.], dtype=float32), 'w': Array([0.6, 0.8], dtype=float32)}

    Source:
      `clipnorm` of Keras.
    """
    return clip(measures.per_slice(axes, norms.lp(ord)), limit, **options)


@named_method("ord")
def clip_by_group_norm(
    labels: PyTree[Hashable] | Callable,
    limits: Mapping[Any, LimitLike | None],
    *,
    ord: float = 2,
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Scales every labelled group of arrays down to the limit of the group.

    $$u_l = g_l \min\Big(1, \frac{\tau_k}{\|(g_j : j \in k)\|_p}\Big), \qquad l \in k$$

    Args:
      labels: as in `optax.partition`, a tree of labels that is a prefix of the parameters, or a
        function from the parameters to one.
      limits: $\tau_k$ for every label $k$; None means unlimited.
      ord: $p$, from 1 to `math.inf`.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation.

    Raises:
      ValueError: at `init`, if the limits are not those of the labels; it names the known groups.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_group_norm({"head": "a", "body": "b"}, {"a": 1.0, "b": None})
      >>> gradient = {"head": jnp.array([2.0]), "body": jnp.array([2.0])}
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      {'body': Array([2.], dtype=float32), 'head': Array([1.], dtype=float32)}
    """
    if not isinstance(limits, Mapping):
        raise TypeError(
            f"`limits` is {limits!r}, but each group has a limit of its own: give a dict from "
            "label to limit, where None means unlimited."
        )
    measure = measures.per_group(labels, norms.lp(ord), groups=tuple(limits))
    return clip(measure, dict(limits), **options)


@named_method("axes", "ord")
def clip_by_unit_norm(
    limit: PyTree[LimitLike | None],
    *,
    axes: measures.Axes | None = -1,
    ord: float = 2,
    **options: Unpack[ClipOptions],
) -> optax.GradientTransformationExtraArgs:
    r"""Scales what feeds each unit down to the limit, where its norm is beyond it.

    $$u_{:, j} = g_{:, j} \min\Big(1, \frac{\tau}{\|g_{:, j}\|_p}\Big)$$

    Args:
      limit: $\tau$.
      axes: the axes that are kept, one unit for every index along them, or a function of
        `(path, leaf)`; of a vector, `-1` makes every entry a unit. None is the last axis, and
        vectors are one unit.
      ord: $p$, from 1 to `math.inf`.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_unit_norm(1.0)
      >>> gradient = jnp.array([[3.0, 0.3], [4.0, 0.4]])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [[0.6 0.3]
       [0.8 0.4]]
    """
    return clip(measures.per_unit(axes, norms.lp(ord)), limit, **options)


@named_method("axes")
def clip_by_block_rms(
    limit: PyTree[LimitLike | None], *, axes: measures.Axes = (), **options: Unpack[ClipOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Scales every array down to the limit, where its root mean square is beyond it.

    $$u_l = g_l \min\Big(1, \frac{\tau}{\mathrm{rms}(g_l)}\Big)$$

    Args:
      limit: $\tau$.
      axes: the axes that are kept, such as `0` where `scan` stacked the layers, or a function of
        `(path, leaf)`: one block for every index along them. `()` is one for every array.
      **options: `shrink`, `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_block_rms(1.0)
      >>> gradient = jnp.array([2.0, 2.0])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [1. 1.]

    Source:
      Shazeer, Stern 2018 (Adafactor), arXiv 1804.04235; `optax.clip_by_block_rms`.
    """
    return clip(measures.per_slice(axes, norms.rms), limit, **options)


@named_method()
def normalize_by_global_norm(
    norm: LimitLike = 1.0, **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the whole gradient, up or down, to the norm given.

    $$u = \tau \frac{g}{\|g\|}$$

    Args:
      norm: $\tau$. A gradient that is zero stays zero.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = normalize_by_global_norm()
      >>> gradient = jnp.array([0.3, 0.4])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [0.6 0.8]

    Source:
      `optax.normalize_by_update_norm`; Hazan, Levy, Shalev-Shwartz 2015, arXiv 1507.02030.
    """
    return clip(measures.whole(), as_threshold(norm, name="norm"), shrinks.normalize, **options)


@named_method()
def smooth_clip_by_global_norm(
    limit: LimitLike, **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the whole gradient so that its norm approaches the limit and never reaches it.

    $$u = \frac{\tau}{\|g\| + \tau}\,g$$

    Args:
      limit: $\tau$.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`.

    Returns:
      The transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = smooth_clip_by_global_norm(5.0)
      >>> gradient = jnp.array([3.0, 4.0])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [1.5 2. ]

    Source:
      Zhang, Jin, Fang, Wang 2020, arXiv 2010.02519.
    """
    return clip(measures.whole(), limit, shrinks.smooth, **options)
