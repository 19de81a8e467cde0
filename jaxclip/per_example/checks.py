"""Checks of a loss, its parameters, its batch and its limits, before any work is done."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding, PartitionSpec

from ..devices import struct
from ..thresholds import check_number
from .devices import axes_of, batch_axes, mesh_of, spec_of

_OF_ONE_EXAMPLE = (
    " Is it written for a whole batch? `loss(params, *example)` gets one example, without a batch "
    "dimension, and returns its loss: reduce it with `jnp.mean` or `jnp.sum`."
)


class Blocks(NamedTuple):
    """Which gradients are measured together, and their limits.

    Attributes:
      of: the block of each parameter.
      limits: the limit of each block.
      treedef: the tree that the caller gave the limits as.
    """

    of: list[int]
    limits: list[Any]
    treedef: Any


class Traced(NamedTuple):
    """A loss as a jaxpr of flat arguments.

    Attributes:
      jaxpr: `(*parameters, *example) -> (loss, *aux)`.
      aux: the tree of the auxiliary output.
    """

    jaxpr: core.ClosedJaxpr
    aux: Any


def blocks_of(limit: Any, params: Any, name: str = "limit") -> Blocks:
    """Matches limits, one for all or a tree that is a prefix of the parameters, with those."""
    limits, treedef = limits_of(limit, name)
    try:
        numbered = treedef.unflatten(range(len(limits)))
        of = jax.tree.leaves(jax.tree.broadcast(numbered, params))
    except ValueError as error:
        raise ValueError(
            f"`{name}` has the structure {treedef}, which is no prefix of that of the parameters, "
            f"{jax.tree.structure(params)}. Give one limit for all, or a tree of limits in which "
            "each stands for the parameters below its place; None means unlimited."
        ) from error
    # None means unlimited where there are parameters; where there are none, it is no block.
    given = jax.tree.leaves(limit, is_leaf=_is_limit)
    used = [i for i, one in enumerate(given) if one is not None or i in of]
    shown = treedef.unflatten([i if i in used else None for i in range(len(given))])
    return Blocks([used.index(i) for i in of], [limits[i] for i in used], jax.tree.structure(shown))


def limits_of(limit: Any, name: str = "limit") -> tuple[list[Any], Any]:
    """The checked limits of a tree, and its structure."""
    limits, treedef = jax.tree.flatten(limit, is_leaf=_is_limit)
    return [_limit(one, name) for one in limits], treedef


def check_params(params: Any) -> None:
    """Refuses parameters that have no gradient."""
    if not jax.tree.leaves(params):
        raise TypeError(
            f"`params` is {params!r}, which holds no arrays: there is nothing to differentiate by. "
            "Give the trained arrays as the first argument."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            what = f"of dtype {dtype}" if dtype is not None else f"{leaf!r}, no array"
            raise TypeError(
                f"`params{jax.tree_util.keystr(path)}` is {what}, and has no gradient. Give the "
                "loss what is not trained in another way: close over it, or pass it in the batch."
            )


def batch_size(batch: Sequence[Any], example_mask: Any) -> int:
    """The number of examples in a batch."""
    sizes = {}
    for place, argument in enumerate(batch):
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument):
            name = f"batch[{place}]{jax.tree_util.keystr(path)}"
            if not getattr(leaf, "shape", ()):
                raise ValueError(
                    f"`{name}` is {leaf!r}, which has no batch dimension. Every array of the batch "
                    "has one example for each index of its first axis; close over what is the same "
                    "for all examples."
                )
            sizes[name] = leaf.shape[0]
    if not sizes:
        raise ValueError("The batch holds no arrays. Call with `(params, *batch)`.")
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"The arrays of the batch disagree on the number of examples, {sizes}. The first axis "
            "of each must be the batch."
        )
    (size,) = set(sizes.values())
    if size == 0:
        raise ValueError(
            "The batch is empty. Leave the step out, or pad the batch and say so with "
            "`example_mask`."
        )
    if example_mask is not None:
        shape, dtype = jnp.shape(example_mask), jnp.result_type(example_mask)
        if shape != (size,) or dtype != jnp.bool_:
            raise ValueError(
                f"`example_mask` has shape {shape} and dtype {dtype}, but it says of each of the "
                f"{size} examples whether it counts: give a bool[{size}]."
            )
    return size


def trace(loss: Callable, params: Any, example: Sequence[Any], has_aux: bool) -> Traced:
    """Traces a loss on one example, given by its shapes and dtypes."""
    leaves, treedef = jax.tree.flatten((params, tuple(example)))

    def flat(*leaves: Any) -> Any:
        params, example = treedef.unflatten(leaves)
        return loss(params, *example)

    try:
        jaxpr, shape = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    except Exception as error:
        if _takes_a_batch(flat, leaves, len(jax.tree.leaves(params))):
            raise TypeError(
                f"The `loss` failed on one example, with {type(error).__name__}, and runs on a "
                f"batch of one.{_OF_ONE_EXAMPLE} A model that needs a batch gets `x[None]`."
            ) from error
        raise
    is_pair = isinstance(shape, tuple) and len(shape) == 2
    if has_aux and not is_pair:
        raise TypeError(
            "With `has_aux=True` the `loss` returns `(scalar, aux)`, but it returned "
            f"{_described(shape)}."
        )
    value: Any = shape[0] if is_pair and has_aux else shape
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        advice = (
            " For `(scalar, aux)` set `has_aux=True`."
            if is_pair and not has_aux
            else _OF_ONE_EXAMPLE
        )
        raise TypeError(
            f"The `loss` must return a real scalar, but it returned {_described(value)}." + advice
        )
    # The named axes of `shard_map` are an effect too, but not one on the world outside.
    effects = [e for e in jaxpr.effects if type(e).__name__ != "NamedAxisEffect"]
    if effects:
        raise ValueError(
            f"The `loss` has side effects, {', '.join(map(str, effects))}, whose order and number "
            "are not kept where examples are computed together. Take `jax.debug.print`, callbacks "
            "and the like out of it, and return what they show with `has_aux=True`."
        )
    return Traced(jaxpr, jax.tree.structure(shape[1]) if has_aux else jax.tree.structure(None))


def _takes_a_batch(flat: Callable, leaves: Sequence[Any], num_params: int) -> bool:
    """Whether a loss that fails on an example runs on a batch of one."""
    batch = [jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in leaves[num_params:]]
    try:
        jax.eval_shape(flat, *leaves[:num_params], *batch)
    except Exception:
        return False
    return True


def check_devices(params: Any, batch: Any, strategy: str, microbatch_size: int | None) -> None:
    """Refuses parameters and microbatches whose parts on different devices nothing would join."""
    shared = axes_of(batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, aval = f"params{jax.tree_util.keystr(path)}", jax.typeof(leaf)
        alone = [axis for axis in axes_of(leaf) if axis not in shared]
        if alone:
            raise ValueError(
                f"`{name}` differs from device to device along {alone}, and the batch does not: "
                "each device has a part of every gradient, and the norm of none. Within "
                "`shard_map` spread the batch alone, or leave those axes to the partitioner, with "
                "`axis_names=` or outside of `shard_map`."
            )
        explicit = [axes for axes in spec_of(aval) if axes is not None]
        if explicit and strategy != "vmap":
            raise ValueError(
                f"`{name}` is spread over {explicit}, which are explicit axes of the mesh: how the "
                "products that norms are made of should be spread is not known. Make those axes "
                'automatic, with `jax.sharding.auto_axes`, or set `strategy="vmap"`.'
            )
    mesh, axes = mesh_of(batch), batch_axes(batch)
    if axes is None or microbatch_size is None:
        return
    names = axes if isinstance(axes, tuple) else (axes,)
    devices = math.prod(mesh.shape[name] for name in names)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % min(microbatch_size, size) or min(microbatch_size, size) % devices:
        raise ValueError(
            f"`microbatch_size` is {microbatch_size}, but the {size} examples are spread over the "
            f"{devices} devices of the explicit axes {names}. Give a multiple of {devices} that "
            f"divides {size}, or make those axes automatic."
        )


def one_of_batch(x: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of one example of an array."""
    aval = jax.typeof(x)
    return _struct(aval, aval.shape[1:], 1)


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array."""
    aval = jax.typeof(x)
    return _struct(aval, aval.shape, 0)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Rejects a word that is not one of the choices."""
    if value not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"`{name}` is {value!r}. Give {listed}.")


def check_microbatch(strategy: str, size: Any) -> None:
    """Rejects an invalid microbatch size, or one that the strategy ignores."""
    if strategy != "microbatch" and size is not None:
        raise ValueError(
            f"`microbatch_size` is {size}, but `strategy` is {strategy!r}, which takes the whole "
            'batch at once. Set `strategy="microbatch"`.'
        )
    if strategy == "microbatch" and (
        not isinstance(size, int) or isinstance(size, bool) or size < 1
    ):
        raise ValueError(
            f"`microbatch_size` is {size!r}, but the microbatch strategy takes that many examples "
            "at once: give an integer of at least 1. It need not divide the batch."
        )


def check_sum(normalize_by: Any, dtype: Any) -> None:
    """Rejects a divisor that is no positive number, and a dtype that holds no gradient."""
    number = isinstance(normalize_by, float | int) and not isinstance(normalize_by, bool)
    if not number or not 0 < normalize_by < math.inf:
        raise ValueError(
            f"`normalize_by` is {normalize_by!r}, but gradients are divided by it: give a positive "
            "number, such as the expected batch size."
        )
    if dtype is not None and not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"`dtype` is {dtype!r}, which does not hold a gradient. Give a float dtype, or None "
            "for those of the parameters."
        )


def _struct(aval: Any, shape: tuple[int, ...], dropped: int) -> jax.ShapeDtypeStruct:
    options = {}
    mesh = getattr(aval.sharding, "mesh", None)
    if mesh is not None and not mesh.empty:
        spec = tuple(aval.sharding.spec)[dropped:]
        options["sharding"] = NamedSharding(mesh, PartitionSpec(*spec))
    return struct(aval, shape, **options)


def _limit(limit: Any, name: str) -> Any:
    if limit is None:
        return math.inf
    if callable(limit):
        raise TypeError(
            f"`{name}` is {limit!r}, but `clipped_grad` has no state and no step to call a "
            "schedule or a threshold with. Give the number for this step, such as "
            "`schedule(step)`; it may be traced."
        )
    return check_number(name, limit)


def _is_limit(x: Any) -> bool:
    return x is None or (callable(x) and not jax.tree.leaves(x))


def _described(shape: Any) -> str:
    return str(jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", shape))
