"""The table of methods that the contract suite runs over, and the oracles that judge them."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxclip

INF = float("inf")


def rank(params: Any) -> Any:
    """Labels for the groups: what is a matrix, and what is not."""
    return jax.tree.map(lambda x: "matrix" if jnp.ndim(x) > 1 else "vector", params)


def ranks(limit: float | None) -> dict[str, float | None]:
    """A limit for each of these groups."""
    return {"matrix": limit, "vector": limit}


def four(path: Any, leaf: Any) -> int:
    """The fan-in of every leaf."""
    return 4


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
      injectable: whether it is for `optax.inject_hyperparams`, which wrappers are not.
      static: the arguments here that it would take for schedules, being functions.
      slope_at_zero: whether the derivative at a zero gradient is 1.
      scalar_collectives: whether nothing but numbers has to cross devices.
      recovers: whether a tiny gradient is forgotten within a hundred steps.
    """

    method: Callable[..., optax.GradientTransformation]
    args: Mapping[str, Any]
    idle: Mapping[str, Any] | None
    blocks: str | None = None
    limit: float | None = None
    reads: bool = False
    options: bool = True
    injectable: bool = True
    static: tuple[str, ...] = ()
    slope_at_zero: bool = True
    scalar_collectives: bool = True
    recovers: bool = True

    @property
    def name(self) -> str:
        return self.method.__name__

    def make(self, **options: Any) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.method(**{**self.args, **options}))

    def make_idle(self) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.method(**{**self.args, **(self.idle or {})}))


# A method a line, as wide as it needs.
# fmt: off
METHODS = [
    Case(jaxclip.clip_by_value, {"limit": 0.5}, {"limit": INF}, "entry", 0.5),
    Case(jaxclip.clip_by_global_norm, {"limit": 0.5}, {"limit": INF}, "whole", 0.5),
    Case(jaxclip.clip_by_leaf_norm, {"limit": 0.5}, {"limit": INF}, "leaf", 0.5),
    Case(jaxclip.clip_by_group_norm, {"labels": rank, "limits": ranks(0.5)}, {"limits": ranks(None)}, "group", 0.5, static=("labels",)),
    Case(jaxclip.clip_by_unit_norm, {"limit": 0.5, "axes": None}, {"limit": INF}, "unit", 0.5),
    Case(jaxclip.clip_by_block_rms, {"limit": 0.5}, {"limit": INF}, "rms", 0.5),
    Case(jaxclip.adaptive_grad_clip, {"ratio": 0.01}, {"ratio": INF}, "unit", None, reads=True),
    Case(jaxclip.normalize_by_global_norm, {"norm": 0.5}, {"norm": INF}, "whole", 0.5),
    Case(jaxclip.smooth_clip_by_global_norm, {"limit": 0.5}, {"limit": INF}, "whole", 0.5),
    Case(jaxclip.autoclip, {"percentile": 50.0, "window": 4}, {"percentile": 100.0}, "whole", static=("window",)),
    Case(jaxclip.zclip, {"warmup": 1, "limit": 0.5}, {"limit": None}, "whole"),
    Case(jaxclip.adagc, {"warmup": 12}, {"warmup_limit": INF}),
    Case(jaxclip.clip_by_norm_ratio, {"ratio": 0.5}, {}, "leaf"),
    Case(jaxclip.clip_by_history, {"sigma": 0.5, "window": 2}, {}, "whole", static=("window",)),
    Case(jaxclip.clip_by_quantile, {"initial": 0.5}, {"initial": INF}, "whole"),
    Case(jaxclip.spam_clip, {"ratio": 0.5, "warmup": 1}, {"warmup": 9}, "entry", slope_at_zero=False),
    Case(jaxclip.limit_norm_growth, {}, {}, "leaf", recovers=False),
    Case(jaxclip.clippy, {"relative": 0.01}, {"relative": INF}, reads=True),
    Case(jaxclip.clip_singular_values, {"limit": 0.5}, {"limit": INF}, scalar_collectives=False),
    Case(jaxclip.drop_spikes, {"factor": 0.5}, {}, "whole"),
    Case(jaxclip.u_clip, {"limit": 0.5}, {"limit": INF}, "entry", 0.5),
    Case(jaxclip.clip_weights, {"limit": 0.5}, {"limit": INF}, "params", 0.5, reads=True, slope_at_zero=False),
    Case(jaxclip.clip_weights_by_fan_in, {"scale": 0.5, "fan_in": four}, {"scale": INF}, "params", 0.5, reads=True, static=("fan_in",), slope_at_zero=False),
]
# fmt: on

# What is public beside the methods, and forms of a method that run other code.
# fmt: off
WRAPPERS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "newton_schulz": lambda **o: jaxclip.clip_singular_values(0.5, method="newton_schulz", **o),
    "skip_nonfinite": lambda **o: jaxclip.skip_nonfinite(jaxclip.clip_by_global_norm(0.5, **o), **o),
    "skip_on_spike": lambda **o: jaxclip.skip_on_spike(jaxclip.clip_by_global_norm(0.5, **o), **o),
    "with_error_feedback": lambda **o: jaxclip.with_error_feedback(jaxclip.clip_by_global_norm(0.5, **o)),
}
# fmt: on


def tree(*dtypes: Any, size: float = 1.0, seed: int = 0) -> dict:
    """A small gradient with entries about `size`, its leaves of the dtypes in turn."""
    rng = np.random.default_rng(seed)
    dtype = itertools.cycle(dtypes or (jnp.float32,))
    shapes = {
        "conv": {"bias": (8,), "kernel": (2, 4, 8)},
        "temperature": (),
    }

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        signs = rng.choice([-1, 1], shape)
        return jnp.asarray(size * rng.uniform(0.5, 2, shape) * signs, next(dtype))

    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


@functools.cache
def framework_trees() -> list[tuple[Any, Any]]:
    """Parameters and gradients as Flax Linen and NNX, Haiku, Equinox and plain Python hold them."""
    kernel, bias = (
        jax.ShapeDtypeStruct((4, 3), jnp.float32),
        jax.ShapeDtypeStruct((3,), jnp.bfloat16),
    )
    linen = flax.core.freeze({"params": {"Dense_0": {"kernel": kernel, "bias": bias}}})
    haiku = {"mlp/~/linear_0": {"w": kernel, "b": bias}}
    model = nnx.eval_shape(lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    arrays = nnx.as_pure(state)  # what `nnx.Optimizer` gives `init` and `update`
    layer = eqx.filter_eval_shape(eqx.nn.MLP, 4, 3, 2, 1, key=jax.random.key(0))
    trained = eqx.filter(layer, lambda x: hasattr(x, "dtype"))  # None where nothing is trained
    pair = collections.namedtuple("Pair", "w b")(kernel, bias)
    alike = [linen, haiku, trained, pair, (kernel, [bias])]
    return [(state, arrays), *((tree, tree) for tree in alike)]


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
        np.asarray(x).dtype == np.asarray(y).dtype
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in leaves
    )


def close(a: Any, b: Any, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    """Asserts that two trees are equal within rounding."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol
        )
