"""What a clip costs, read from the compiled program and not from a clock."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxclip

SHAPES = [(512, 256), (256, 512), (512, 256), (512,)]  # equal ones too, of which XLA shares parts


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "tx",
    [jaxclip.clip_by_global_norm(1.0), jaxclip.adaptive_grad_clip(0.01)],
    ids=["global", "units"],
)
def test_cost_no_copy_of_the_gradient_is_made(tx, dtype):
    compiled, size = training_step(tx, dtype)
    # Beside it there are the norms, one of 256 or 512 entries each, and what is made of them.
    assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * size
