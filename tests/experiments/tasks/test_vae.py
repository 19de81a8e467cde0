import jax
import numpy as np
import pytest
from scipy import special

import jaxclip
from experiments.tasks.vae import Vae
from experiments.training import train
from experiments.training.config import Config, trial

TASK = Vae(hidden=32, latent=3)


@pytest.fixture(scope="module")
def params():
    return TASK.init(jax.random.key(0))


def test_the_bound_is_that_of_the_equation(params, tiny):
    """In NumPy and double precision, with the divergence of two normal distributions by scipy."""
    batch = TASK.draw(jax.random.key(1), jax.tree.map(lambda x: x[:20], tiny.test))
    assert batch.noise.shape == (20, 3)
    x = np.asarray(batch.images).reshape(20, -1) / 255
    layer = {
        name: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), one)
        for name, one in params.items()
    }

    def apply(name, inputs):
        return inputs @ layer[name]["kernel"] + layer[name]["bias"]

    mean, log_variance = np.split(apply("code", np.maximum(apply("encode", x), 0)), 2, -1)
    code = mean + np.exp(log_variance / 2) * np.asarray(batch.noise)
    share = special.expit(apply("pixels", np.maximum(apply("decode", code), 0)))
    likelihood = (special.xlogy(x, share) + special.xlog1py(1 - x, -share)).sum(-1)
    deviation = np.exp(log_variance / 2)
    divergence = (-np.log(deviation) + (deviation**2 + mean**2) / 2 - 0.5).sum(-1)
    np.testing.assert_allclose(TASK.bounds(params, batch), likelihood - divergence, rtol=1e-4)
    np.testing.assert_allclose(
        TASK.loss(params, batch), -np.mean(likelihood - divergence), rtol=1e-4
    )


def test_a_training_raises_the_bound_and_shows_the_digits(tiny):
    config = Config(TASK, jaxclip.clip_by_global_norm, draw=TASK.draw, batch_size=20, epochs=6)
    numbers = trial(learning_rate=0.05, limit=10.0)
    state, scores = train.init(config, numbers, tiny), []
    epoch = jax.jit(train.epoch, static_argnums=0)
    for _ in range(config.epochs):
        state, history = epoch(config, numbers, tiny, state)
        scores.append(float(history.score))
    assert scores[-1] > scores[0] > -7.84 * np.log(2)
    # The noise is the same every time; what is left is rounding, within `jit` and without.
    np.testing.assert_allclose(TASK.score(state.params, tiny.test), scores[-1], rtol=1e-5)
    samples = TASK.samples(state.params, jax.random.key(0), 7)
    again = TASK.reconstructions(state.params, tiny.test.images[:5])
    assert (samples.shape, again.shape) == ((7, 28, 28), (5, 28, 28))
    error = np.mean(np.abs(np.asarray(again) - tiny.test.images[:5, ..., 0] / 255))
    assert error < np.mean(np.abs(0.5 - tiny.test.images[:5, ..., 0] / 255)) / 2
    assert np.all((samples >= 0) & (samples <= 1))
