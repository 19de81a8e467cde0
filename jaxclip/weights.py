"""Projections of the parameters: clips of what the parameters will be, last in a chain."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from . import leaves, measures
from .arguments import check_params
from .core import NonfiniteOptions, check_nonfinite, clip
from .methods.named import named_method
from .methods.value import clip_by_value
from .norms import count, working_dtype
from .scope import Scope
from .shrinks import Nonfinite
from .thresholds import LimitLike, as_threshold

FanIn = Callable[[leaves.Path, Array], int | None]
# The names of Flax and Haiku.
BIASES = ("bias", "b")
EMBEDDINGS = ("embedding", "embeddings")
PROJECTIONS = ("query", "key", "value")  # [d, heads, size], with no bias that would tell


@named_method()
def clip_weights(
    limit: PyTree[LimitLike | None], **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps every parameter within plus and minus the limit, after the update.

    $$u' = \min(\max(w + u, -\tau), \tau) - w$$

    Args:
      limit: $\tau$.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`; it is the
        update that becomes nan or zero where the parameter would be nan or infinite.

    Returns:
      The transformation, to be chained after the optimizer; its `update` needs `params`. Its
      metrics are those of the parameters.

    Raises:
      ValueError: at the first update, if it was given no `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(1.0), clip_weights(0.5))
      >>> params, gradient = jnp.array([0.25, 0.25]), jnp.array([-2.0, 0.125])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [0.5   0.125]

    Source:
      Arjovsky, Chintala, Bottou 2017 (WGAN), arXiv 1701.07875.
    """
    return _projection(functools.partial(clip_by_value, limit), **options)


@named_method("fan_in")
def clip_weights_by_fan_in(
    scale: LimitLike, *, fan_in: FanIn | None = None, **options: Unpack[NonfiniteOptions]
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps every weight within the bound of its initialization, after the update.

    $$|w + u'| \le \frac{\kappa}{\sqrt{\mathrm{fan\_in}}}$$

    Args:
      scale: $\kappa$; a number, an array, a schedule or a threshold.
      fan_in: a function of `(path, leaf)` that returns how many inputs feed a unit, or None for a
        leaf to be left alone. By default a kernel's is the product of its input axes: those before
        the axes of the `bias` beside it, as in `[d, heads, size]` of Flax's attention, otherwise
        all but the last, over all devices that `axis_name` names. A bias, and a vector as long as a
        kernel beside it, has that kernel's. An `embedding` has its last axis, as in its
        initialization. All else is left alone. The
        `[out, in]` kernels of Equinox and kernels that `scan` stacked want a function.
      **options: `nonfinite`, `axis_name`, the masks, `name` and `detail`, as in `clip`; it is the
        update that becomes nan or zero where the parameter would be nan or infinite.

    Returns:
      The transformation, to be chained after the optimizer; its `update` needs `params`. Its
      metrics are of $\sqrt{\mathrm{fan\_in}}\,|w + u|$.

    Raises:
      ValueError: at the first update, if it was given no `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(1.0), clip_weights_by_fan_in(1.0))
      >>> params = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
      >>> updates, state = tx.update({"kernel": -jnp.ones((4, 2)), "bias": jnp.ones(2)},
      ...                            tx.init(params), params)
      >>> print(updates["bias"])
      [-0.5 -0.5]

    Source:
      Elsayed et al. 2024, arXiv 2407.01704, where $\kappa$ is `zeta`.
    """
    limit = as_threshold(scale, name="scale")
    return _projection(functools.partial(clip, _by_fan_in(fan_in), limit), **options)


def _projection(
    clip_of: Callable[..., optax.GradientTransformationExtraArgs],
    nonfinite: Nonfinite = "propagate",
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Makes a clip of parameters a transformation of updates.

    A parameter that the clip makes nan is one without a number or a limit, and gets no update, or
    nan.
    """
    check_nonfinite(nonfinite)
    inner = clip_of(**options)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        params = check_params(updates, params, "it is the parameters that are clipped")
        updates, params = leaves.as_arrays(updates), leaves.as_arrays(params)
        moved = jax.tree.map(_moved, updates, params, is_leaf=leaves.is_none)
        clipped, state = inner.update(moved, state, params, **extra_args)
        way = functools.partial(_way, 0.0 if nonfinite == "zero" else math.nan)
        return jax.tree.map(way, updates, params, moved, clipped, is_leaf=leaves.is_none), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _moved(update: Any, param: Any) -> Any:
    """The parameter after the update; what cannot be updated stays."""
    if not leaves.is_measured(update):
        return param
    return param + update.astype(param.dtype)


def _way(bad: float, update: Any, param: Any, moved: Any, clipped: Any) -> Any:
    """The update that leads to the clipped parameter."""
    if not leaves.is_measured(update):
        return update
    # What is within the limit keeps its update to the bit, which `(w + u) - w` would not.
    way = jnp.where(clipped == moved, update, (clipped - param).astype(update.dtype))
    return jnp.where(jnp.isnan(clipped), jnp.array(bad, update.dtype), way)


def _by_fan_in(fan_in: FanIn | None) -> measures.Measure:
    r"""Blocks are entries, and their norms $\sqrt{\mathrm{fan\_in}}\,|w|$."""

    def measure(params: optax.Params, scope: Scope) -> tuple[measures.Norms, measures.FullRange]:
        everything = dataclasses.replace(scope, measure_mask=None)
        inputs_of = fan_in or _of_kernels(
            {leaf.path: everything.shape(leaf) for leaf in everything.leaves(params)}
        )

        def weight(path: leaves.Path, x: Array) -> Array | None:
            inputs = inputs_of(path, x) if leaves.is_measured(x) else None
            return None if inputs is None else jnp.sqrt(count(inputs, working_dtype(x.real.dtype)))

        entries, treedef = leaves.leaves_with_path(scope.own(params))
        weights = treedef.unflatten([weight(path, x) for path, x in entries])
        bounded = jax.tree.map(lambda x, w: None if w is None else x, scope.own(params), weights)
        norms, rescale = measures.per_entry()(bounded, scope)

        def rescale_all(factors: measures.Factors) -> optax.Params:
            return leaves.replace_measured(params, rescale(factors))

        return jax.tree.map(lambda n, w: n * w, norms, weights), measures.FullRange(
            rescale_all, rescale.apart, fine=True
        )

    return measures.Scoped(measure)


def _of_kernels(shapes: dict[leaves.Path, tuple[int, ...]]) -> FanIn:
    """The fan-in of kernels, of what is beside them, and of embeddings."""
    biases = {path[:-1]: shape for path, shape in shapes.items() if _name(path) in BIASES}
    inputs: dict[tuple, int] = {}  # by the place and the shape of the outputs
    own: dict[leaves.Path, int] = {}
    for path, shape in shapes.items():
        if _name(path) in EMBEDDINGS and shape:
            own[path] = shape[-1]
        elif len(shape) > 1 and _name(path) not in BIASES:
            split = len(shape) - _count_outputs(path, shape, biases.get(path[:-1], ()))
            own[path] = inputs[(path[:-1], shape[split:])] = math.prod(shape[:split])

    def fan_in(path: leaves.Path, x: Array) -> int | None:
        return own.get(path, inputs.get((path[:-1], shapes[path])))

    return fan_in


def _count_outputs(path: leaves.Path, kernel: tuple[int, ...], bias: tuple[int, ...]) -> int:
    """How many axes of a kernel, the last ones, are outputs."""
    if bias and len(bias) < len(kernel) and kernel[-len(bias) :] == bias:
        return len(bias)
    return 2 if len(kernel) == 3 and _name(path[:-1]) in PROJECTIONS else 1


def _name(path: leaves.Path) -> str:
    """The last name of a path, empty for the root."""
    return jax.tree_util.keystr(path[-1:], simple=True)
