import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks.deep import DeepMnist, layer_norms


def first_norm(task, tiny):
    """The log10 of the norm of the first layer's gradient."""
    batch = jax.tree.map(lambda x: x[:50], tiny.train)
    norms = layer_norms(jax.grad(task.loss)(task.init(jax.random.key(0)), batch))
    assert norms.shape == (task.depth,)
    return float(jnp.log10(norms[0]))


def test_the_norms_are_those_of_the_layers_in_their_order(tiny):
    """More than ten of them, whose names would sort otherwise."""
    task = DeepMnist(depth=12, width=4)
    batch = jax.tree.map(lambda x: x[:50], tiny.train)
    gradient = jax.grad(task.loss)(task.init(jax.random.key(0)), batch)
    found = layer_norms(gradient)
    for index in range(12):
        layer = gradient["layers"][index]
        expected = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in layer.values()))
        np.testing.assert_allclose(found[index], expected, rtol=1e-5)


def test_gradients_vanish_below_the_gain_of_one_and_explode_above(tiny):
    vanishing, usual, exploding = (
        first_norm(DeepMnist(12, "relu", gain=gain), tiny) for gain in (0.5, 1.0, 2.0)
    )
    # Every layer multiplies by the gain, but for the logits, whose softmax saturates.
    assert abs(vanishing - (usual + 12 * np.log10(0.5))) < 0.5
    assert exploding > usual + 2


@pytest.mark.parametrize("changes", [{"residual": True}, {"normalized": True}])
def test_residuals_and_normalization_keep_gradients_alive(tiny, changes):
    plain, kept = (first_norm(DeepMnist(12, "tanh", gain=0.5, **c), tiny) for c in ({}, changes))
    assert kept > plain + 2


def test_the_layers_are_what_the_task_says():
    shapes = jax.eval_shape(DeepMnist(3, normalized=True).init, jax.random.key(0))
    assert len(shapes["layers"]) == len(shapes["norms"]) == 3
    assert "norms" not in jax.eval_shape(DeepMnist(3).init, jax.random.key(0))
