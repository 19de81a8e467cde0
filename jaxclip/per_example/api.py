"""The functions that users call."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from .. import shrinks
from ..norms import working_dtype
from ..shrinks import Shrink
from . import checks
from .clipping import clipped, norms_of_blocks
from .decision import Info, Options, Reduce, Strategy, mask_and_count
from .forms import Form
from .guarantee import Clipped


def clipped_grad(
    loss: Callable,
    limit: PyTree,
    *,
    shrink: Shrink = shrinks.hard,
    reduce: Reduce = "mean",
    has_aux: bool = False,
    nonfinite: Literal["zero", "propagate"] = "zero",
    strategy: Strategy = "auto",
    microbatch_size: int | None = None,
    form: Form = "auto",
    bound: bool = False,
    normalize_by: float = 1.0,
    rescale_to_unit_norm: bool = False,
    dtype: DTypeLike | None = None,
) -> Clipped:
    r"""The gradient of a batch in which every example's own gradient is clipped.

    $$\bar g = \frac1B \sum_{i=1}^B s(n_i, \tau)\, g_i, \qquad
      g_i = \nabla_\theta\, \ell(\theta, x_i), \quad n_i = \|g_i\|_2$$

    Gradients $g_i$ are materialized only where their norms require it, so that this takes about the
    time and the memory of an ordinary gradient. It holds for every loss that JAX can differentiate;
    `jaxclip.per_example.explain` shows how each parameter is dealt with. It is not a privacy
    library: it adds no noise and computes no epsilon.

    Args:
      loss: $\ell$, `loss(params, *example)`, the loss of one example, without a batch dimension: a
        real scalar. Pass PRNG keys of the examples in the batch.
      limit: $\tau \ge 0$, a number or a scalar array, None for no limit. A tree of limits that is a
        prefix of the parameters clips the parts below each limit on their own.
      shrink: the factor $s$ of an example, given its norm and the limit.
      reduce: `"mean"` divides by the number of examples that the mask leaves in, `"sum"` does not.
      has_aux: whether the loss returns `(scalar, aux)`.
      nonfinite: what becomes of an example whose gradient holds nan or infinity: `"zero"` leaves it
        out of the sum, and `"propagate"` makes the sum nan. Either way it is counted.
      strategy: `"auto"` is described above. `"vmap"` makes the gradient of every example.
        `"microbatch"` is `"auto"` on `microbatch_size` examples at a time, for less memory.
      microbatch_size: any size; it need not divide the batch.
      form: for weights that are used at several positions of an example (tokens, pixels), whether
        norms are computed from `"gram"` matrices or from the `"matrices"` of the gradients;
        `"auto"` chooses by cost.
      bound: whether each norm is raised by all that rounding may have taken from it, so that no
        example adds more than the limit: for private training. For parameters that the loss reads
        as they are, cast or rearranged; the page on per-example clipping has the proof.
      normalize_by: what the sum or mean is divided by besides, such as the expected batch size.
      rescale_to_unit_norm: whether each clipped gradient is divided by its limit, so that none is
        longer than 1 and the learning rate does not depend on the limit.
      dtype: of the gradient, those of the parameters by default. Sums are made in float32 at least.

    Returns:
      `f(params, *batch, example_mask=None) -> (gradient, info)`, which has a method
      `sensitivity(relation)`. The batch is the example with a
      leading axis on every array, and the mask a bool[batch], False for padding. Inside `shard_map`
      the gradient is that of the device's own examples: take `lax.pmean` or `lax.psum` of it.

    Raises:
      TypeError: the limit is no number, a parameter is no float, or the loss is no real scalar.
      ValueError: the limit is negative or nan, or its tree does not fit the parameters; the batch
        is empty or its arrays disagree in length; the loss has side effects; a word is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> def loss(w, x, y):
      ...     return 0.5 * (x @ w - y) ** 2
      >>> w, x, y = jnp.zeros(2), jnp.array([[0.6, 0.8], [3.0, 4.0]]), jnp.array([-1.0, -1.0])
      >>> gradient, info = clipped_grad(loss, 1.0)(w, x, y)
      >>> print(gradient, info.norms, info.clipped)
      [0.6 0.8] [1. 5.] [False  True]

    Source:
      Abadi et al. 2016, arXiv 1607.00133; Li, Tramèr, Liang, Hashimoto 2021, arXiv 2110.05679;
      Bu, Wang, Zha, Karypis 2022, arXiv 2210.00038. AUTO-S is
      `shrink=functools.partial(shrinks.normalize, eps=0.01)`, DP-PSAC is `shrink=shrinks.psac`.
    """
    options = Options(
        shrink,
        reduce,
        has_aux,
        nonfinite,
        strategy,
        microbatch_size,
        form,
        bound,
        normalize_by,
        rescale_to_unit_norm,
        dtype,
    )
    limits = _checked(limit, options)

    def gradient(
        params: PyTree, *batch: Any, example_mask: Bool[Array, " batch"] | None = None
    ) -> tuple[PyTree, Info]:
        return clipped(loss, limit, options, params, batch, example_mask)

    return Clipped(gradient, limits, options)


def value_and_clipped_grad(
    loss: Callable,
    limit: PyTree,
    *,
    shrink: Shrink = shrinks.hard,
    reduce: Reduce = "mean",
    has_aux: bool = False,
    nonfinite: Literal["zero", "propagate"] = "zero",
    strategy: Strategy = "auto",
    microbatch_size: int | None = None,
    form: Form = "auto",
    bound: bool = False,
    normalize_by: float = 1.0,
    rescale_to_unit_norm: bool = False,
    dtype: DTypeLike | None = None,
) -> Clipped:
    r"""The loss of a batch, and its gradient as `clipped_grad` has it.

    Args:
      loss: as in `clipped_grad`, and so are all others.
      limit: one limit, or a tree of them.
      shrink: the factor of an example.
      reduce: `"mean"` or `"sum"`, of the losses too.
      has_aux: whether the loss returns `(scalar, aux)`.
      nonfinite: `"zero"` or `"propagate"`. The value is not affected by it.
      strategy: `"auto"`, `"vmap"` or `"microbatch"`.
      microbatch_size: for that strategy.
      form: `"auto"`, `"gram"` or `"matrices"`.
      bound: whether norms are raised by what rounding may have taken from them.
      normalize_by: what the gradient is divided by besides; the value is not.
      rescale_to_unit_norm: whether each clipped gradient is divided by its limit.
      dtype: of the gradient.

    Returns:
      `f(params, *batch, example_mask=None) -> (value, gradient, info)`, where the value is the mean
      or the sum of the losses that the mask leaves in.

    Raises:
      TypeError: as in `clipped_grad`.
      ValueError: as in `clipped_grad`.

    Examples:
      >>> import jax.numpy as jnp
      >>> def loss(w, x):
      ...     return jnp.sum(w * x)
      >>> value, gradient, info = value_and_clipped_grad(loss, 1.0)(jnp.ones(2), jnp.eye(2))
      >>> print(value, gradient)
      1.0 [0.5 0.5]
    """
    options = Options(
        shrink,
        reduce,
        has_aux,
        nonfinite,
        strategy,
        microbatch_size,
        form,
        bound,
        normalize_by,
        rescale_to_unit_norm,
        dtype,
    )
    limits = _checked(limit, options)

    def value_and_gradient(
        params: PyTree, *batch: Any, example_mask: Bool[Array, " batch"] | None = None
    ) -> tuple[Float[Array, ""], PyTree, Info]:
        gradient, info = clipped(loss, limit, options, params, batch, example_mask)
        mask, count = mask_and_count(example_mask, info.values.shape[0])
        wide = info.values.astype(working_dtype(info.values.dtype))
        value = jnp.sum(jnp.where(mask, wide, 0))
        value = value / count.astype(value.dtype) if reduce == "mean" else value
        return value.astype(info.values.dtype), gradient, info

    return Clipped(value_and_gradient, limits, options)


def norms(
    loss: Callable,
    *,
    blocks: PyTree = "whole",
    has_aux: bool = False,
    form: Form = "auto",
    bound: bool = False,
) -> Callable[..., PyTree]:
    r"""The norm of every example's gradient, without the gradient.

    $$n_i = \|\nabla_\theta\, \ell(\theta, x_i)\|_2$$

    Args:
      loss: $\ell$, as in `clipped_grad`.
      blocks: what is measured together: `"whole"` all parameters, `"leaf"` each array, or a tree
        that is a prefix of the parameters, with anything for leaves, whose leaves each stand for
        the parameters below them.
      has_aux: whether the loss returns `(scalar, aux)`.
      form: `"auto"`, `"gram"` or `"matrices"`, as in `clipped_grad`.
      bound: whether norms are raised by what rounding may have taken from them, as there.

    Returns:
      `f(params, *batch) -> norms`, `[batch]` or a tree of those.

    Raises:
      TypeError: a parameter is no float, or the loss is no real scalar.
      ValueError: `blocks` does not fit the parameters, the batch is empty or its arrays disagree in
        length, or the loss has side effects.

    Examples:
      >>> import jax.numpy as jnp
      >>> def loss(params, x):
      ...     return params["w"] @ x + params["b"]
      >>> params, x = {"w": jnp.ones(2), "b": jnp.zeros(())}, jnp.array([[0.0, 0.0], [3.0, 4.0]])
      >>> print(norms(loss, blocks="leaf")(params, x)["w"])
      [0. 5.]
    """
    checks.check_choice("form", form, ("auto", "gram", "matrices"))

    def norms_of(params: PyTree, *batch: Any) -> PyTree:
        checks.check_params(params)
        size = checks.batch_size(batch, None)
        if isinstance(blocks, str):
            checks.check_choice("blocks", blocks, ("whole", "leaf"))
            tree = 0.0 if blocks == "whole" else jax.tree.map(lambda _: 0.0, params)
        else:
            tree = jax.tree.map(lambda _: 0.0, blocks)
        found = checks.blocks_of(tree, params, "blocks")
        return norms_of_blocks(loss, params, batch, size, has_aux, found, form, bound)

    return norms_of


def _checked(limit: PyTree, options: Options) -> list[Any]:
    """The limits of all blocks, after all that can be known to be wrong has been refused."""
    limits, _ = checks.limits_of(limit)
    checks.check_choice("reduce", options.reduce, ("mean", "sum"))
    checks.check_choice("nonfinite", options.nonfinite, ("zero", "propagate"))
    checks.check_choice("strategy", options.strategy, ("auto", "vmap", "microbatch"))
    checks.check_choice("form", options.form, ("auto", "gram", "matrices"))
    checks.check_microbatch(options.strategy, options.microbatch_size)
    checks.check_sum(options.normalize_by, options.dtype)
    return limits
