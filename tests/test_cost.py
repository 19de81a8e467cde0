"""What a clip costs, read from the compiled program and not from a clock."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxclip
from tests.helpers import METHODS

SHAPES = [(512, 256), (256, 512), (512, 256), (512,)]  # equal ones too, of which XLA shares parts

# What has a value for every entry, or decomposes, writes copies of the gradient still: how many
# bytes for each byte of it in bfloat16, and how many operations of every step read an array of it.
COPIES = {
    "clip_singular_values": 5,
    "clip_weights": 1.1,
    "clip_weights_by_fan_in": 14,
    "clippy": 5,
    "spam_clip": 13,
    "u_clip": 6,
}
READS = {"adagc": 3, "clip_by_value": 4, "clip_singular_values": 4, "clippy": 5, "spam_clip": 8}
READS |= {"u_clip": 5, "clip_weights_by_fan_in": 7}
BRANCHES = {"adaptive_grad_clip": 3, "adagc": 3, "clip_by_value": 3, "u_clip": 3, "clip_weights": 3}


def training_step(tx, dtype):
    """A step of SGD with donated parameters, compiled, and the bytes of the gradient."""
    params = [jax.ShapeDtypeStruct(shape, dtype) for shape in SHAPES]
    optimizer = optax.chain(tx, optax.sgd(0.1))

    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return compiled, sum(math.prod(p.shape) * p.dtype.itemsize for p in params)


def reads(text):
    """How many operations of every step read the first array of the gradient."""
    always = text.split("ENTRY")[1]
    uses = [line.split(" = ")[1] for line in always.splitlines() if " = " in line]
    # A tuple is what a branch is given that only extreme gradients take.
    return sum("%gradient_0_" in use and " tuple(" not in f" {use}" for use in uses)


@pytest.mark.slow
@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
def test_cost_of_every_method(monkeypatch, case):
    """Without a copy of the gradient, with two reads of it and one branch a set of norms."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    compiled, size = training_step(case.make(), jnp.bfloat16)
    text = compiled.as_text()
    # Beside it there are the norms, one of 256 or 512 entries each, and what is made of them.
    assert compiled.memory_analysis().temp_size_in_bytes < COPIES.get(case.name, 0.05) * size
    assert reads(text) <= READS.get(case.name, 2)
    assert text.split("ENTRY")[1].count(" conditional(") <= BRANCHES.get(case.name, 2)
    assert "custom-call-target" not in text or case.name == "clip_singular_values"
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all"))


@pytest.mark.slow  # XLA of JAX 0.12 sets a copy aside for the rare branch; quick tests run there
def test_cost_of_a_global_clip_in_float32():
    compiled, size = training_step(jaxclip.clip_by_global_norm(1.0), jnp.float32)
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * size
    assert reads(compiled.as_text()) == 2


def test_cost_the_guard_sees_a_copy():
    """Optax's clip shares a float32 copy of bfloat16."""
    compiled, size = training_step(optax.clip_by_global_norm(1.0), jnp.bfloat16)
    assert compiled.memory_analysis().temp_size_in_bytes > size
