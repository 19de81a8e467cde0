"""`jax_privacy.clipping.clipped_grad` at the price of one gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from .. import per_example

try:
    from jax_privacy import clipping
except ImportError as error:
    raise ImportError(
        "`jaxclip.contrib.jax_privacy` stands in for a function of jax-privacy, which is not "
        'installed: `pip install "jaxclip[privacy]"`.'
    ) from error


def clipped_grad(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    l2_clip_norm: float,
    rescale_to_unit_norm: bool = False,
    normalize_by: float = 1.0,
    batch_argnums: int | Sequence[int] = 1,
    keep_batch_dim: bool = True,
    return_values: bool = False,
    return_grad_norms: bool = False,
    pre_clipping_transform: Callable[[PyTree], PyTree] | None = None,
    microbatch_size: int | None = None,
    nan_safe: bool = True,
    dtype: DTypeLike | None = None,
    prng_argnum: int | None = None,
    spmd_axis_name: str | None = None,
) -> clipping.BoundedSensitivityCallable:
    r"""The sum of clipped gradients, with the arguments and results of jax-privacy's function.

    $$\frac1N \sum_i \min\!\Big(1, \frac{\tau}{\|g_i\|}\Big)\, g_i, \qquad
      g_i = \nabla\, \ell(\theta, x_i)$$

    It differs in three ways. An example whose gradient holds nan or infinity is left out as a whole
    where `nan_safe` is set; jax-privacy keeps its finite entries. Norms are raised by what rounding
    may have taken from them, by a few millionths as a rule and by a percent at most, so that the
    guarantee holds in floating point too; those of padding examples are 0. And
    `is_padding_example` saves no time.

    Args:
      fun: $\ell$, the loss, or `(loss, aux)`.
      argnums: the arguments to differentiate with respect to.
      has_aux: whether `fun` returns `(loss, aux)`.
      l2_clip_norm: $\tau$.
      rescale_to_unit_norm: whether each clipped gradient is divided by $\tau$.
      normalize_by: $N$.
      batch_argnums: the arguments that have a batch axis.
      keep_batch_dim: whether `fun` is given each example as a batch of one.
      return_values: whether the losses are returned.
      return_grad_norms: whether the norms before clipping are returned.
      pre_clipping_transform: of each example's gradient. It takes jax-privacy's own way, and time.
      microbatch_size: how many examples are taken at a time; it need not divide the batch.
      nan_safe: whether the guarantee holds where gradients are not finite.
      dtype: of the sum, which is made in float32 at least.
      prng_argnum: an argument that is a PRNG key, to split for the examples.
      spmd_axis_name: for `pre_clipping_transform`; else the partitioner needs no name.

    Returns:
      A `BoundedSensitivityCallable`: `f(*args, is_padding_example=None)` gives the sum, or the sum
      and an `AuxiliaryOutput`.

    Raises:
      ValueError: an argument is to be differentiated and has a batch axis, or a number is negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip.contrib import jax_privacy
      >>> f = lambda param, data: 0.5 * jnp.mean((data - param) ** 2)
      >>> g = jax_privacy.clipped_grad(f, l2_clip_norm=jnp.inf)
      >>> print(g(3.0, jnp.array([0.0, 7.0, -2.0])), g.sensitivity())
      4.0 inf

    Source:
      The documentation of `jax_privacy.clipping.clipped_grad`, jax-privacy 2.0.
    """
    trained, batched = _tuple(argnums), _tuple(batch_argnums)
    _check(trained, batched, normalize_by)
    returns_more = has_aux or return_values or return_grad_norms
    if pre_clipping_transform is not None:
        return clipping.clipped_grad(
            fun,
            argnums,
            has_aux,
            l2_clip_norm=l2_clip_norm,
            rescale_to_unit_norm=rescale_to_unit_norm,
            normalize_by=normalize_by,
            batch_argnums=batch_argnums,
            keep_batch_dim=keep_batch_dim,
            return_values=return_values,
            return_grad_norms=return_grad_norms,
            pre_clipping_transform=pre_clipping_transform,
            microbatch_size=microbatch_size,
            nan_safe=nan_safe,
            dtype=dtype,
            prng_argnum=prng_argnum,
            spmd_axis_name=spmd_axis_name,
        )

    def grad_fn(*args: Any, is_padding_example: Any = None, **kwargs: Any) -> Any:
        size = _batch_size(batched, args)

        def loss(params: tuple, of_example: dict[int, Any], named: dict[str, Any]) -> Any:
            every = dict(enumerate(args)) | dict(zip(trained, params, strict=True)) | of_example
            for i in batched if keep_batch_dim else ():
                every[i] = jax.tree.map(lambda x: jnp.expand_dims(x, 0), every[i])
            return fun(*(every[i] for i in range(len(args))), **named)

        clip = per_example.clipped_grad(
            loss,
            l2_clip_norm,
            reduce="sum",
            has_aux=has_aux,
            nonfinite="zero" if nan_safe else "propagate",
            strategy="auto" if microbatch_size is None else "microbatch",
            microbatch_size=microbatch_size,
            bound=True,
            normalize_by=normalize_by,
            rescale_to_unit_norm=rescale_to_unit_norm,
            dtype=dtype,
        )
        params = tuple(jax.tree.map(jnp.asarray, args[i]) for i in trained)
        batch = {i: jax.tree.map(jnp.asarray, args[i]) for i in batched}
        if prng_argnum is not None:
            batch[prng_argnum] = jax.tree.map(
                lambda k: jax.random.split(k, size), args[prng_argnum]
            )
        mask = None if is_padding_example is None else ~jnp.asarray(is_padding_example)
        gradient, info = clip(params, batch, kwargs, example_mask=mask)
        gradient = gradient[0] if isinstance(argnums, int) else gradient
        if not returns_more:
            return gradient
        aux = jax.tree.map(_without_axis_1, info.aux) if keep_batch_dim else info.aux
        return gradient, clipping.AuxiliaryOutput(
            values=info.values if return_values else None,
            grad_norms=info.norms if return_grad_norms else None,
            aux=aux if has_aux else None,
        )

    limit = (1.0 if rescale_to_unit_norm else l2_clip_norm) / normalize_by
    # By position: the name of the second field has changed between versions.
    return clipping.BoundedSensitivityCallable(grad_fn, limit, returns_more)


def _check(trained: tuple[int, ...], batched: tuple[int, ...], normalize_by: float) -> None:
    if normalize_by <= 0.0:
        raise ValueError(f"`normalize_by` must be > 0, and is {normalize_by}.")
    if not batched:
        raise ValueError("`batch_argnums` is empty. Name the arguments that have a batch axis.")
    if min(trained + batched) < 0:
        raise ValueError(f"`argnums` {trained} and `batch_argnums` {batched} must be >= 0.")
    if shared := sorted(set(trained) & set(batched)):
        raise ValueError(
            f"The arguments {shared} are in `argnums` and in `batch_argnums`: what has a batch "
            "axis has no gradient that is summed over it."
        )


def _batch_size(batched: tuple[int, ...], args: Sequence[Any]) -> int:
    if len(args) <= max(batched):
        raise ValueError(
            f"`batch_argnums` names argument {max(batched)}, but {len(args)} were given."
        )
    leaves = [leaf for i in batched for leaf in jax.tree.leaves(args[i])]
    sizes = {jnp.shape(leaf)[0] for leaf in leaves}
    if len(sizes) != 1:
        raise ValueError(f"The batch axes of the arguments {batched} have the sizes {sizes}.")
    return sizes.pop()


def _tuple(numbers: int | Sequence[int]) -> tuple[int, ...]:
    return (numbers,) if isinstance(numbers, int) else tuple(numbers)


def _without_axis_1(x: Any) -> Any:
    return jnp.squeeze(x, 1) if jnp.ndim(x) >= 2 and jnp.shape(x)[1] == 1 else x
