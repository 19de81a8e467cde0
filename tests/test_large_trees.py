"""A billion bfloat16 parameters over 8 devices, clipped where they lie; from shapes alone."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.test_sharding import EVERY, mesh, state_layout

# A transformer of 26 layers, each 2048 wide, with its layers stacked.
TREE = {
    "embedding": ((65536, 2048), P("data", "model")),
    "up": ((26, 2048, 8192), P(None, "data", "model")),
    "down": ((26, 8192, 2048), P(None, "model", "data")),
    "scales": ((26, 2048), P()),
    "last scale": ((2048,), P()),
}
DAILY = ("clip_by_global_norm", "clip_by_unit_norm", "zclip", "skip_nonfinite")
# What clips entry by entry writes arrays as large as the tree on CPU: of what it counts, of the
# gradient as it was, and of wide copies.
BY_ENTRY = (
    "clip_by_value",
    "clip_weights",
    "clip_weights_by_fan_in",
    "clippy",
    "spam_clip",
    "u_clip",
    "with_error_feedback",
)
SPECTRAL = ("clip_singular_values", "newton_schulz")  # work on copies of matrices


def temporary_share(name: str) -> float:
    """The temporary bytes of a device, as a share of its part of the tree."""
    tx, devices = EVERY[name](), mesh()
    layout = {key: NamedSharding(devices, spec) for key, (_, spec) in TREE.items()}
    tree = {
        key: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=layout[key])
        for key, (shape, _) in TREE.items()
    }
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(tx.init, tree),
        state_layout(tx, tree, layout, NamedSharding(devices, P())),
    )
    compiled = jax.jit(tx.update, donate_argnums=(0, 1)).lower(tree, state, tree).compile()
    size = 2 * sum(math.prod(shape) for shape, _ in TREE.values()) / devices.size
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * size  # the updates are where the gradient was
    return memory.temp_size_in_bytes / size


@pytest.mark.slow  # XLA of JAX 0.12 sets a copy aside for the rare branch; quick tests run there
@pytest.mark.parametrize(
    "name",
    [
        name if name in DAILY else pytest.param(name, marks=pytest.mark.wide)
        for name in EVERY
        if name not in BY_ENTRY + SPECTRAL
    ],
)
def test_large_trees_are_clipped_in_place(name):
    assert sum(math.prod(shape) for shape, _ in TREE.values()) > 1e9
    assert temporary_share(name) < 0.02


@pytest.mark.wide
@pytest.mark.xfail(reason="on CPU clipping by entry writes arrays as large as the tree")
@pytest.mark.parametrize("name", BY_ENTRY)
def test_large_trees_are_clipped_in_place_by_entry(name):
    assert temporary_share(name) < 0.02
