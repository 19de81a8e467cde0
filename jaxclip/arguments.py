"""Checks of what `update` is given: a state of its own, the parameters, and the leaves of both."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .leaves import is_none, leaves_with_path


def check_state(state: Any, kind: type, of: str) -> None:
    """Refuses a state that is not what the `init` of this transformation returned.

    Args:
      state: what `update` was given.
      kind: the NamedTuple that it should be.
      of: how an error message calls the transformation.

    Raises:
      TypeError: it is something else.
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"The state of {of} is {_short(state)}, which is not what its `init` returns. Call "
            "`state = tx.init(params)` once, and hand on the state that every `update` returns."
        )


def check_params(updates: optax.Updates, params: optax.Params | None, because: str) -> optax.Params:
    """Returns the parameters, and refuses an update without them, or with others.

    Args:
      updates: what `update` was given.
      params: what it was given beside them.
      because: why the parameters are needed, such as "the limit is relative to them".

    Raises:
      ValueError: they are None, or have other leaves.
    """
    if params is None:
        raise ValueError(
            f"`params` is missing, but {because}. Call `update(updates, state, params)`."
        )
    check_leaves(updates, params, "the parameters have")
    return params


def check_leaves(updates: PyTree, others: PyTree, whose: str) -> None:
    """Refuses updates that have other leaves, by number, than a tree that belongs to them.

    Args:
      updates: the updates, or their norms; None is a leaf.
      others: the other tree.
      whose: how an error message goes on after "the leaves that".

    Raises:
      ValueError: they do; the message has the paths.
    """
    count = len(jax.tree.leaves(updates, is_leaf=is_none))
    if count == len(jax.tree.leaves(others, is_leaf=is_none)):
        return
    now, before = _paths(updates), _paths(others)
    lacking, new = sorted(before - now), sorted(now - before)
    problem = f"lack {', '.join(lacking)}" if lacking else f"have {', '.join(new)} besides"
    raise ValueError(
        f"The updates do not have the leaves that {whose}: they {problem}. Give `update` a tree of "
        "the structure of the parameters, with None for what has no gradient."
    )


def known(extra_args: Mapping[str, Any]) -> dict[str, Any]:
    """The extra arguments of `update`, with `value=` where the loss was given as `loss=`."""
    loss = extra_args.get("loss")
    if loss is None or extra_args.get("value") is not None:
        return dict(extra_args)
    return {**extra_args, "value": loss}


def given_loss(extra_args: Mapping[str, Any], dtype: jnp.dtype) -> Array | None:
    """The loss of the step, if `known` extra arguments have it."""
    what = "the loss of the step: give one real number, such as the mean over the batch"
    return _scalar("value", extra_args, what, dtype)


def given_norm(extra_args: Mapping[str, Any], dtype: jnp.dtype) -> Array | None:
    """The norm of the gradient, if the extra arguments have it."""
    what = "the norm of the whole gradient: give one real number, as `jaxclip.global_norm` returns"
    return _scalar("grad_norm", extra_args, what, dtype)


def _scalar(name: str, extra_args: Mapping[str, Any], what: str, dtype: jnp.dtype) -> Array | None:
    if extra_args.get(name) is None:
        return None
    value = jnp.asarray(extra_args[name])
    if value.size != 1 or jnp.iscomplexobj(value):
        raise ValueError(
            f"`{name}` is an array of shape {value.shape} and dtype {value.dtype}, but it is "
            f"{what}."
        )
    return value.reshape(()).astype(dtype)


def _paths(tree: PyTree) -> set[str]:
    entries, _ = leaves_with_path(tree, is_leaf=is_none)
    return {jax.tree_util.keystr(path) or "itself" for path, _ in entries}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"
