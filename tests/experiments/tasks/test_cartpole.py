import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from experiments.tasks import cartpole
from experiments.tasks.cartpole import CartPole
from experiments.training import train
from experiments.training.config import Config, trial

TASK = CartPole(width=8, steps=20, rollouts=32)


def reference(state, action):
    """A step of Gym's CartPole-v1, line by line, in float64."""
    x, x_dot, theta, theta_dot = map(float, state)
    force = 10.0 if action == 1 else -10.0
    costheta, sintheta = np.cos(theta), np.sin(theta)
    temp = (force + 0.05 * theta_dot**2 * sintheta) / 1.1
    thetaacc = (9.8 * sintheta - costheta * temp) / (0.5 * (4.0 / 3.0 - 0.1 * costheta**2 / 1.1))
    xacc = temp - 0.05 * thetaacc * costheta / 1.1
    return [
        x + 0.02 * x_dot,
        x_dot + 0.02 * xacc,
        theta + 0.02 * theta_dot,
        theta_dot + 0.02 * thetaacc,
    ]


def test_the_cart_moves_as_that_of_gym():
    rng = np.random.default_rng(0)
    move = jax.jit(cartpole.move)
    for _ in range(20):
        state, action = rng.normal(size=4).astype(np.float32), int(rng.integers(2))
        np.testing.assert_allclose(
            move(state, action), reference(state, action), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("state", "fallen"),
    [([0, 9, 0, 9], False), ([2.5, 0, 0, 0], True), ([0, 0, -0.22, 0], True)],
)
def test_the_pole_falls_where_it_is_steep_or_far_away(state, fallen):
    assert cartpole.has_fallen(jnp.array(state, jnp.float32)) == fallen


def test_advantages_are_those_of_their_definition():
    rng = np.random.default_rng(1)
    values = rng.normal(size=9).astype(np.float32)
    fell = np.array([0, 0, 1, 0, 0, 0, 1, 0, 0], bool)
    expected = []
    for first in range(8):
        total, weight = 0.0, 1.0
        for step in range(first, 8):
            total += weight * (1 + 0.99 * (not fell[step]) * values[step + 1] - values[step])
            if fell[step]:
                break
            weight *= 0.99 * 0.95
        expected.append(total)
    advantages, returns = cartpole.generalize(values, fell)
    np.testing.assert_allclose(advantages, expected, rtol=1e-5)
    np.testing.assert_allclose(returns, expected + values[:-1], rtol=1e-5, atol=1e-6)


def test_a_rollout_begins_anew_where_the_pole_falls():
    params = TASK.init(jax.random.key(0))
    steps = jax.jit(TASK.rollout)(params, 3)
    assert steps.state.shape == (21, 4)
    assert steps.fell.any()
    for index in range(20):
        here, after = steps.state[index], steps.state[index + 1]
        if steps.fell[index]:
            assert np.all(np.abs(after) <= 0.05)
        else:
            np.testing.assert_allclose(after, cartpole.move(here, steps.action[index]), rtol=1e-5)


def test_every_parameter_has_a_gradient():
    params = TASK.init(jax.random.key(0))
    batch = jnp.arange(4)
    gradient = jax.jit(jax.grad(TASK.loss))(params, batch)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(np.asarray(leaf) != 0), path


@pytest.mark.slow
def test_it_learns_to_balance():
    task = CartPole(rollouts=1600)
    config = Config(task, jaxclip.clip_by_global_norm, optax.adam, batch_size=16, epochs=1)
    fit = jax.jit(functools.partial(train.train, config))
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        history = fit(trial(learning_rate=0.003, limit=0.5), task.data())
    untrained = jax.jit(task.score)(task.init(jax.random.key(0)), task.data().test)
    assert untrained < 0.2
    assert history.score[-1] > 0.3
