import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from experiments.tasks.residual import Residual
from experiments.training import train
from experiments.training.config import Config, trial

TASK = Residual(width=8, blocks=2, groups=2)


@pytest.fixture(scope="module")
def params():
    return TASK.init(jax.random.key(0))


def test_a_block_whose_layers_are_zero_passes_its_states(params):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    params = dict(params)
    logits = jax.jit(TASK.logits)
    assert logits(params, images).shape == (3, 10)
    still = jax.tree.map(jnp.zeros_like, params["blocks"])
    shorter = Residual(width=8, blocks=0, groups=2)
    bare = {name: leaf for name, leaf in params.items() if name != "blocks"}
    np.testing.assert_allclose(
        logits({**params, "blocks": still}, images),
        jax.jit(shorter.logits)({**bare, "blocks": {}}, images),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_logits_are_those_of_each_image_alone(params):
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    logits = jax.jit(TASK.logits)
    together = logits(params, images)
    alone = jnp.concatenate([logits(params, images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient(params, tiny):
    gradient = jax.jit(jax.grad(TASK.loss))(params, jax.tree.map(lambda x: x[:20], tiny.train))
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_it_learns_patterns_that_differ_by_their_place_alone(tiny):
    """Which a mean over all places hides from it, but for the edges."""
    config = Config(TASK, jaxclip.clip_by_global_norm, batch_size=20, epochs=8)
    fit = jax.jit(functools.partial(train.train, config))
    assert fit(trial(learning_rate=0.3, limit=1.0), tiny).score[-1] > 0.4
