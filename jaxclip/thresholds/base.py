r"""The record of a threshold, and the thresholds without a memory.

A threshold is two pure functions written for one block. It never sees a tree, and never a norm that
is nan or infinite: `clip` maps it over the blocks, counts the steps, and leaves the state of a
block whose norm is not finite as it was. A memory that is proportional to the norms it has seen
must neither leave the range of the dtype nor stay at zero: it starts at the first positive norm.

Wherever a limit is asked for, a number, an array, a schedule or a threshold will do; `as_threshold`
turns each into the last.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Norm = Float[Array, ""]
Limit = Float[Array, ""]
Schedule = Callable[[Int[Array, ""]], Any]


class Now(NamedTuple):
    """All that a threshold may know besides the norm.

    Attributes:
      step: 0 at the first update.
      param_norm: the norm of the same block in the parameters, if the threshold reads it.
      extra_args: what the caller gave `update` beyond the gradient, such as `value=loss`.
    """

    step: Int[Array, ""]
    param_norm: Norm | None
    extra_args: Mapping[str, Any]


class Threshold(NamedTuple):
    """How large one block may be, as two pure functions.

    Attributes:
      init: `(norm) -> state`, where `norm` is a zero in the dtype of the norms to come.
      update: `(norm, state, now) -> (limit, state)`. The state keeps its shapes and dtypes.
      reads_params: whether `now.param_norm` is wanted, which costs a pass over the parameters.
    """

    init: Callable[[Norm], Any]
    update: Callable[[Norm, Any, Now], tuple[Any, Any]]
    reads_params: bool = False


LimitLike = float | Array | Schedule | Threshold
Number = float | Array
FINITE = float(np.finfo(np.float32).max)
Feed = Literal["clipped", "raw", "within_limit"]


def intake(feed: Feed, norm: Norm, limit: Limit, memory: Limit) -> Limit:
    """The norm that a memory learns from: clipped, raw, or only that of blocks within the limit."""
    if feed == "raw":
        return norm
    return jnp.minimum(norm, limit) if feed == "clipped" else jnp.where(norm <= limit, norm, memory)


def awake(memory: Limit, norm: Norm) -> Limit:
    """The memory after a norm, positive if the norm was, however much was clipped of it.

    A memory of zero has no limit yet, and would let the next norm through.
    """
    kept = jnp.maximum(memory, jnp.finfo(memory.dtype).tiny)
    return jnp.where(norm > 0, kept, memory)


def numbers(norm: Norm, *values: float | Array) -> list[Array]:
    """Hyperparameters in the dtype of the norms, which that of the state must not depend on."""
    return [jnp.asarray(value, norm.dtype) for value in values]


def times(size: Limit, k: Limit) -> Limit:
    """A size times a hyperparameter, of which infinity means unlimited, of a size of 0 as well."""
    return jnp.where(jnp.isinf(k), jnp.inf, size * k)


def check_choice(name: str, value: Any, *known: str) -> Any:
    """Returns one of the known words, and refuses any other."""
    if value not in known:
        raise ValueError(f"`{name}` is {value!r}. Give one of {', '.join(map(repr, known))}.")
    return value


def check_warmup(warmup: Any) -> Any:
    """Returns a number of steps, and refuses a Python number that cannot be one."""
    if not isinstance(warmup, jax.Array) and (
        isinstance(warmup, bool) or not isinstance(warmup, int | np.integer) or warmup < 0
    ):
        raise ValueError(f"`warmup` is {warmup!r}. Give a number of steps, 0 or more.")
    return warmup


def check_whole_number(name: str, value: Any, at_least: int) -> int:
    """Returns a Python integer that decides a shape, and rejects anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"`{name}` is {value!r}, of type {type(value).__name__}. It decides a shape, so it "
            "must be a Python integer; under `optax.inject_hyperparams` name it in `static_args`."
        )
    if value < at_least:
        raise ValueError(f"`{name}` is {value}. Give {at_least} or more.")
    return value


def constant(limit: float | Limit) -> Threshold:
    r"""The same limit at every step.

    $$\tau_t = c$$

    Args:
      limit: $c \ge 0$, `inf` for none. A traced array counts as 0 where it is negative.

    Raises:
      TypeError: the limit is no number.
      ValueError: the limit is a negative number or nan, or an array that is no scalar.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), jaxclip.thresholds.constant(1.0))
    """
    limit = check_number("limit", limit)
    return stateless(lambda norm, now: limit)


def scheduled(schedule: Schedule) -> Threshold:
    r"""A limit that depends on the step, as a learning rate does.

    $$\tau_t = f(t), \qquad t = 0, 1, \dots$$

    Args:
      schedule: $f$, any Optax schedule. A negative value counts as 0.

    Examples:
      >>> import jaxclip, optax
      >>> limit = jaxclip.thresholds.scheduled(optax.cosine_decay_schedule(1.0, 1000))
      >>> tx = jaxclip.clip(jaxclip.measures.whole(), limit)
    """
    return stateless(lambda norm, now: schedule(now.step))


def relative(ratio: float | Limit, *, eps: float = 1e-3) -> Threshold:
    r"""A limit in proportion to the block's own parameters.

    $$\tau = \lambda \max(\|w\|, \epsilon)$$

    Args:
      ratio: $\lambda \ge 0$.
      eps: $\epsilon \ge 0$, so that parameters that are zero still learn.

    Raises:
      ValueError: at the first update, if it was given no `params`.

    Examples:
      >>> import jaxclip
      >>> tx = jaxclip.clip(jaxclip.measures.per_leaf(), jaxclip.thresholds.relative(0.01))

    Source:
      Brock, De, Smith, Simonyan 2021, arXiv 2102.06171.
    """
    ratio, eps = check_number("ratio", ratio), check_number("eps", eps)

    def limit(norm: Norm, now: Now) -> Limit:
        assert now.param_norm is not None  # `reads_params`
        share, least = numbers(norm, ratio, eps)
        return times(jnp.maximum(now.param_norm, least), share)

    return stateless(limit)._replace(reads_params=True)


def as_threshold(limit: LimitLike, *, name: str = "limit") -> Threshold:
    """Turns whatever says how large a block may be into a threshold.

    Args:
      limit: a number, an array, a schedule, or a threshold, which is returned as it is.
      name: how an error message calls it.

    Returns:
      The threshold.

    Raises:
      TypeError: it is not of these types.
      ValueError: it is a negative number or nan, or an array that is no scalar.

    Examples:
      >>> threshold = as_threshold(1.0)
    """
    if isinstance(limit, Threshold):
        return limit
    if callable(limit):
        return scheduled(limit)
    limit = check_number(name, limit)
    return stateless(lambda norm, now: limit)


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float = 0,
    at_most: float = math.inf,
    positive: str = "",
    hint: str = "",
) -> Any:
    """Returns a number or an array as it is, and refuses what cannot be one.

    Only Python (and NumPy) numbers are looked at: an array may be traced, and is taken at its word.
    With `positive`, which says why, 0 is refused as well.
    """
    wanted = "a number, a scalar array, a schedule or a threshold"
    if isinstance(value, bool | np.bool_ | str | bytes | complex | None):
        raise TypeError(
            f"`{name}` is {value!r}, of type {type(value).__name__}, which is no size to compare a "
            f"norm with. Give {wanted}; `math.inf` means unlimited."
        )
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, int | float | np.integer | np.floating):
        if not at_least <= value <= at_most:
            between = f"at least {at_least}" if at_most == math.inf else f"{at_least} to {at_most}"
            remedy = " `math.inf` means unlimited." if at_most == math.inf else ""
            why = ", but it is compared with what cannot be negative or nan" * (at_most == math.inf)
            raise ValueError(f"`{name}` is {value}{why}: give a number of {between}.{remedy}{hint}")
        if positive and value == 0:
            raise ValueError(f"`{name}` is 0, {positive}. Give a positive number, such as 0.1.")
        return float(value)
    if isinstance(value, jax.Array | np.ndarray):
        if value.ndim:
            raise ValueError(
                f"`{name}` is an array of shape {value.shape}, but a block has one limit. Give a "
                "scalar, or a tree of scalars with the structure of the norms."
            )
        is_complex = jnp.issubdtype(value.dtype, jnp.complexfloating)
        if is_complex or not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(
                f"`{name}` is an array of {value.dtype}, which is no size to compare a norm with. "
                f"Give {wanted}."
            )
        return value
    raise TypeError(f"`{name}` is {value!r}, of type {type(value).__name__}. Give {wanted}.")


def check_quantile(quantile: Any) -> Any:
    """Returns a quantile as it is, and rejects numbers outside of 0 to 1, such as a percentile."""
    number = isinstance(quantile, int | float | np.integer | np.floating)
    percent = number and 1 < quantile <= 100
    hint = f" Did you mean {quantile / 100:g}?" if percent else ""
    return check_number("quantile", quantile, at_most=1, hint=hint)


def stateless(limit: Callable[[Norm, Now], Any]) -> Threshold:
    """A threshold without a memory, from a function `(norm, now) -> limit`."""
    return Threshold(lambda norm: (), lambda norm, state, now: (limit(norm, now), state))
