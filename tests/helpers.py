"""The table of methods that the contract suite runs over, and the oracles that judge them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip

INF = float("inf")


def rank(params: Any) -> Any:
    """Labels for the groups: what is a matrix, and what is not."""
    return jax.tree.map(lambda x: "matrix" if jnp.ndim(x) > 1 else "vector", params)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One method, with all that the contract suite has to know about it.

    Attributes:
      method: the function.
      args: arguments with which gradients of size 1 and more are shrunk.
      idle: arguments with which nothing is; None where a method moves every gradient.
      blocks: how the oracle cuts the gradient: whole, leaf, group, unit, entry, rms or params;
        None where it cannot say.
      limit: the limit of the blocks, where the arguments alone decide it.
      reads: whether `update` needs `params`.
      options: whether the method has the options of `clip`.
    """

    method: Callable[..., optax.GradientTransformation]
    args: Mapping[str, Any]
    idle: Mapping[str, Any] | None
    blocks: str | None = None
    limit: float | None = None
    reads: bool = False
    options: bool = True

    @property
    def name(self) -> str:
        return self.method.__name__

    def make(self, **options: Any) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.method(**{**self.args, **options}))

    def make_idle(self) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.method(**{**self.args, **(self.idle or {})}))


NO_LIMITS = {"matrix": None, "vector": None}

# fmt: off
METHODS = [
    Case(jaxclip.clip_by_value, {"limit": 0.5}, {"limit": INF}, "entry", 0.5),
    Case(jaxclip.clip_by_global_norm, {"limit": 0.5}, {"limit": INF}, "whole", 0.5),
    Case(jaxclip.clip_by_leaf_norm, {"limit": 0.5}, {"limit": INF}, "leaf", 0.5),
    Case(jaxclip.clip_by_group_norm, {"labels": rank, "limits": dict.fromkeys(NO_LIMITS, 0.5)}, {"limits": NO_LIMITS}, "group", 0.5),
    Case(jaxclip.clip_by_unit_norm, {"limit": 0.5, "axes": None}, {"limit": INF}, "unit", 0.5),
    Case(jaxclip.clip_by_block_rms, {"limit": 0.5}, {"limit": INF}, "rms", 0.5),
    Case(jaxclip.adaptive_grad_clip, {"ratio": 0.01}, {"ratio": INF}, "unit", None, reads=True),
    Case(jaxclip.normalize_by_global_norm, {"norm": 0.5}, {"norm": INF}, "whole", 0.5),
    Case(jaxclip.smooth_clip_by_global_norm, {"limit": 0.5}, {"limit": INF}, "whole", 0.5),
    Case(jaxclip.clip_weights, {"limit": 0.5}, {"limit": INF}, "params", 0.5, reads=True),
    Case(jaxclip.clip_weights_by_fan_in, {"scale": 0.5, "fan_in": lambda path, x: 4}, {"scale": INF}, "params", 0.5, reads=True),
]
# fmt: on


def tree(dtype: Any = jnp.float32, size: float = 1.0, seed: int = 0) -> dict:
    """A small gradient: a kernel, its bias, a convolution and a scalar, entries about `size`."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv": {"kernel": (3, 2, 4)},
        "dense": {"bias": (3,), "kernel": (4, 3)},
        "temperature": (),
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(size * rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def true_norms(blocks: str, updates: Any) -> np.ndarray:
    """The norms of all blocks, by NumPy in float64."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(updates)]
    if blocks == "whole":
        return np.array([_norm(leaves)])
    if blocks == "group":
        matrices, vectors = [x for x in leaves if x.ndim > 1], [x for x in leaves if x.ndim < 2]
        return np.array([_norm(matrices), _norm(vectors)])
    if blocks == "leaf":
        return np.array([_norm([x]) for x in leaves])
    if blocks == "rms":
        return np.array([_norm([x]) / np.sqrt(x.size) for x in leaves])
    if blocks == "unit":
        units = [np.moveaxis(x, -1, 0) if x.ndim > 1 else [x] for x in leaves]
        return np.array([_norm([unit]) for leaf in units for unit in leaf])
    return np.concatenate([np.abs(x).ravel() for x in leaves])


def _norm(arrays: Sequence[np.ndarray]) -> float:
    largest = max((np.max(np.abs(x), initial=0) for x in arrays), default=0)
    if largest == 0 or not np.isfinite(largest):
        return float(largest)
    return float(largest * np.sqrt(sum(np.sum((x / largest) ** 2) for x in arrays)))


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees are equal bit for bit, the sign of zero and the kind of nan included."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).dtype == np.asarray(y).dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in leaves
    )


def close(a: Any, b: Any, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    """Asserts that two trees are equal within rounding."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol
        )
