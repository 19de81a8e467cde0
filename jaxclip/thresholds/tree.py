"""Trees of limits: the threshold of each block, and what the thresholds remember of all blocks."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ..arguments import check_leaves
from ..bits import not_negative
from ..devices import spread_out, varying
from ..leaves import is_none
from .base import LimitLike, Now, Threshold, as_threshold


@dataclasses.dataclass(frozen=True, eq=False)
class LimitTree:
    """Thresholds for all blocks of a measure.

    Their state has the structure of the thresholds. At each of them stands what that threshold
    remembers, every field of it a tree like the norms, as `optax.tree.map_params` and the rules for
    the sharding of optimizer states expect it.

    Attributes:
      thresholds: a tree of thresholds, a prefix of the norms.
    """

    thresholds: PyTree[Threshold]

    @property
    def reads_params(self) -> bool:
        """Whether any threshold wants the norms of the parameters."""
        return any(one.reads_params for one in self._ones)

    def init(self, norms: PyTree, dtype: jnp.dtype) -> PyTree:
        """Returns the first state, given the shapes of the norms."""
        if jax.tree.leaves(norms):
            self.spread(norms)
            below = self._prefix.flatten_up_to(norms)
        else:  # a tree without blocks, such as Optax makes to find the parameters in a state
            below = [norms] * len(self._ones)

        def first_state(one: Threshold, fields: Any, blocks: PyTree) -> Any:
            arrays, structure = jax.tree.flatten(blocks)
            zeros = [jnp.zeros_like(x, dtype) for x in arrays]
            states = [
                [
                    spread_out(field, sorted(varying(zero)))  # as it will be when it has learned
                    for field in fields.flatten_up_to(_over_blocks(one.init, zero.ndim)(zero))
                ]
                for zero in zeros
            ]
            columns = [[state[k] for state in states] for k in range(fields.num_leaves)]
            return fields.unflatten([structure.unflatten(column) for column in columns])

        each = zip(self._ones, self._fields, below, strict=True)
        return self._prefix.unflatten([first_state(*one) for one in each])

    def update(
        self,
        norms: PyTree[Array],
        state: PyTree,
        param_norms: PyTree[Array],
        step: Int[Array, ""],
        extra_args: Mapping[str, Any],
    ) -> tuple[PyTree[Array], PyTree]:
        """Returns the limit of every block, and the next state.

        A norm that is not finite, or that has a limit of nan, teaches nothing.
        """
        if not jax.tree.leaves(norms):
            return norms, state
        present = norms
        if isinstance(self.thresholds, dict) and isinstance(norms, dict):
            # Groups of which nothing has a gradient at this step.
            norms, param_norms = [dict.fromkeys(self.thresholds) | x for x in (norms, param_norms)]
        self.spread(norms)

        def of_one_block(
            one: Threshold, norm: Array, state: Any, param_norm: Array
        ) -> tuple[Array, Any]:
            finite = jnp.isfinite(norm)
            now = Now(step, param_norm if one.reads_params else None, extra_args)
            limit, learned = one.update(jnp.where(finite, norm, 0), state, now)
            limit = _as_limit(limit, norm.dtype)
            learns = finite & ~jnp.isnan(limit) if jax.tree.leaves(state) else True
            return limit, jax.tree.map(
                lambda new, old: jnp.where(learns, jnp.asarray(new, old.dtype), old), learned, state
            )

        def of_one_threshold(
            one: Threshold, fields: Any, norms: PyTree, state: Any, param_norms: PyTree
        ) -> tuple[PyTree, Any]:
            places, structure = jax.tree.flatten(norms, is_leaf=is_none)
            beside, _ = jax.tree.flatten(param_norms, is_leaf=is_none)
            columns = [jax.tree.flatten(x, is_leaf=is_none) for x in fields.flatten_up_to(state)]
            for field in fields.flatten_up_to(state):
                check_leaves(norms, field, "`init` saw")
            limits, rows = [], []
            for k, (norm, param_norm) in enumerate(zip(places, beside, strict=True)):
                limit, row = None, fields.unflatten([remembered[k] for remembered, _ in columns])
                if norm is not None:  # None has no gradient at this step
                    decide = _over_blocks(functools.partial(of_one_block, one), norm.ndim)
                    limit, row = decide(norm, row, param_norm)
                limits.append(limit)
                rows.append(fields.flatten_up_to(row))
            learned = [
                treedef.unflatten([row[k] for row in rows])
                for k, (_, treedef) in enumerate(columns)
            ]
            return structure.unflatten(limits), fields.unflatten(learned)

        trees = [self._prefix.flatten_up_to(x) for x in (norms, state, param_norms)]
        each = zip(self._ones, self._fields, *trees, strict=True)
        limits, states = zip(*[of_one_threshold(*one) for one in each], strict=True)
        limits, states = self._prefix.unflatten(limits), self._prefix.unflatten(states)
        if present is not norms:
            limits = {key: limits[key] for key in present}
        return limits, states

    def given(self, arrays: PyTree[Array], step: Int[Array, ""], dtype: jnp.dtype) -> list[Array]:
        """The limit of each array, by thresholds that neither look at a norm nor remember any."""
        zero, now = jnp.zeros((), dtype), Now(step, None, {})
        return [_as_limit(one.update(zero, (), now)[0], dtype) for one in self.spread(arrays)]

    def spread(self, norms: PyTree) -> list[Threshold]:
        """The threshold of each array of blocks; an error if the thresholds are no prefix."""
        thresholds = self.thresholds
        if (
            isinstance(thresholds, dict)
            and isinstance(norms, dict)
            and thresholds.keys() != norms.keys()
        ):
            unknown = [key for key in thresholds if key not in norms]
            unlimited = [key for key in norms if key not in thresholds]
            problem = f"unknown: {unknown}" if unknown else f"without a limit: {unlimited}"
            raise ValueError(
                f"The limits do not match the blocks, which are {list(norms)} ({problem}). Give "
                "each of these a limit; None means unlimited."
            )
        try:
            spread = jax.tree.broadcast(thresholds, norms, is_leaf=is_threshold)
        except ValueError as error:
            raise ValueError(
                f"The limits have the structure {self._prefix}, which is no prefix of that of the "
                f"norms, {jax.tree.structure(norms)}. Give one limit for all, or a limit for every "
                "block; a schedule that is a pytree goes into `thresholds.scheduled`."
            ) from error
        return jax.tree.leaves(spread, is_leaf=is_threshold)

    @functools.cached_property
    def _ones(self) -> list[Threshold]:
        return jax.tree.leaves(self.thresholds, is_leaf=is_threshold)

    @functools.cached_property
    def _prefix(self) -> Any:
        return jax.tree.structure(self.thresholds, is_leaf=is_threshold)

    @functools.cached_property
    def _fields(self) -> list:
        """The structure of what each threshold remembers of a block."""
        norm = jax.ShapeDtypeStruct((), jnp.float32)
        return [jax.tree.structure(jax.eval_shape(one.init, norm)) for one in self._ones]


def limit_tree(limits: PyTree[LimitLike | None]) -> LimitTree:
    """Turns every limit of a tree into a threshold; None becomes infinity."""
    return LimitTree(
        jax.tree.map(
            lambda limit: as_threshold(math.inf if limit is None else limit),
            limits,
            is_leaf=_is_limit,
        )
    )


def is_threshold(x: Any) -> bool:
    """Whether `x` is a threshold, a leaf in a tree of limits."""
    return isinstance(x, Threshold)


def _is_limit(x: Any) -> bool:
    # A tree of limits may itself be callable, as an Equinox module is.
    is_schedule = callable(x) and (
        isinstance(x, functools.partial) or jax.tree_util.all_leaves([x])
    )
    return x is None or is_threshold(x) or is_schedule


def _as_limit(limit: Any, dtype: jnp.dtype) -> Array:
    """The limit of a block as an array; one that is negative counts as 0."""
    if isinstance(limit, float):  # was checked when the threshold was made
        return jnp.asarray(limit, dtype)
    if limit is None or jnp.ndim(limit):
        what = "None" if limit is None else f"an array of shape {jnp.shape(limit)}"
        raise ValueError(
            f"A schedule or a threshold returned {what}, but a block has one limit: return a "
            "scalar; `math.inf` means unlimited."
        )
    return not_negative(jnp.asarray(limit, dtype))


def _over_blocks(of_one_block: Callable, ndim: int) -> Callable:
    """Maps a function of one block over an array of blocks of any rank."""
    for _ in range(ndim):
        of_one_block = jax.vmap(of_one_block)
    return of_one_block
