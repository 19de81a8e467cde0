import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from experiments.tasks import frechet, wgan
from experiments.tasks.wgan import Wgan
from experiments.training import train
from experiments.training.config import Config, trial

TASK = Wgan(hidden=16, latent=4)


@pytest.fixture(scope="module")
def params():
    return TASK.init(jax.random.key(0))


def batch(tiny, task=TASK):
    return task.draw(jax.random.key(1), jax.tree.map(lambda x: x[:30], tiny.train))


def losses(task, params, drawn):
    """The two losses as they are written, each of its own player."""
    network = task.network(params)
    real = np.float32(drawn.images.reshape(30, -1)) / np.float32(255)
    fake = network.generate(drawn.codes)
    return network.judge(fake).mean() - network.judge(real).mean(), -network.judge(fake).mean()


def test_each_player_has_the_gradient_of_its_own_loss(params, tiny, equal):
    drawn = batch(tiny)
    value, slope = jax.value_and_grad(TASK.loss)(params, drawn)
    np.testing.assert_allclose(value, losses(TASK, params, drawn)[0], rtol=1e-5)
    for player, which in ((wgan.CRITIC, 0), (wgan.GENERATOR, 1)):
        own = jax.grad(lambda p, which=which: losses(TASK, p, drawn)[which])(params)[player]
        for mine, wanted in zip(*map(jax.tree.leaves, (slope[player], own)), strict=True):
            np.testing.assert_allclose(mine, wanted, atol=1e-7)


def test_the_penalty_is_of_the_slopes_between_images_and_samples(params, tiny):
    task = Wgan(hidden=16, latent=4, penalized=True)
    drawn = batch(tiny, task)
    without, once, twice = (float(task.loss(params, drawn, penalty)) for penalty in (0, 1, 2))
    np.testing.assert_allclose(without, TASK.loss(params, drawn), rtol=1e-5)
    network = task.network(params)
    mixed = drawn.shares * (np.float32(drawn.images.reshape(30, -1)) / np.float32(255))
    mixed += (1 - drawn.shares) * network.generate(drawn.codes)
    slopes = jax.vmap(jax.grad(lambda x: network.judge(x[None])[0]))(mixed)
    expected = np.mean((np.linalg.norm(slopes, axis=1) - 1) ** 2)
    np.testing.assert_allclose(
        [once - without, twice - without], [expected, 2 * expected], rtol=1e-3
    )


def test_a_critic_that_is_blind_has_a_finite_penalty(params, tiny):
    task = Wgan(hidden=16, latent=4, penalized=True)
    blind = jax.tree.map(jnp.zeros_like, params)
    value, slope = jax.value_and_grad(task.loss)(blind, batch(tiny, task))
    np.testing.assert_allclose(value, 10.0, rtol=1e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_the_generator_has_its_turn_every_fifth_step(params):
    tx = wgan.in_turn(optax.sgd(1.0), optax.sgd(1.0))
    state, moved = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(10):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        moved.append([bool(np.any(updates[p]["first"]["bias"])) for p in ("critic", "generator")])
    assert moved == [[True, step % 5 == 4] for step in range(10)]


def test_each_player_is_clipped_by_itself_and_the_critic_is_under_study(params):
    tx = wgan.each_player(lambda name: jaxclip.clip_by_global_norm(2.0, name=name))
    gradient = {
        player: jax.tree.map(lambda x, s=size: s * jnp.ones_like(x), params[player])
        for player, size in (("critic", 1e-6), ("generator", 1.0))
    }
    updates, state = tx.update(gradient, tx.init(params), params)
    assert float(optax.tree.norm(updates["critic"])) < 0.01
    np.testing.assert_allclose(optax.tree.norm(updates["generator"]), 2.0, rtol=1e-5)
    assert float(train.find_metrics(state).clipped) == 0


def test_no_weight_of_the_critic_is_beyond_the_spectral_limit(params):
    tx = optax.chain(optax.sgd(1.0), wgan.limit_spectrum(0.5))
    critic = params["critic"]
    gradient = jax.tree.map(jnp.ones_like, critic)
    updates, _ = tx.update(gradient, tx.init(critic), critic)
    after = optax.apply_updates(critic, updates)
    for name in ("first", "second", "output"):
        assert np.linalg.norm(after[name]["kernel"], 2) <= 0.5 * (1 + 1e-5)
        np.testing.assert_array_equal(after[name]["bias"], critic[name]["bias"] - 1)


@pytest.mark.slow
def test_a_training_brings_the_samples_nearer(judged, tiny, monkeypatch):
    monkeypatch.setattr(wgan, "JUDGED", 50)
    config = Config(
        TASK,
        lambda limit: wgan.each_player(functools.partial(jaxclip.clip_by_global_norm, limit)),
        lambda rate: wgan.in_turn(
            optax.chain(optax.rmsprop(rate), jaxclip.clip_weights(0.05, name="weights")),
            optax.rmsprop(rate),
        ),
        draw=TASK.draw,
        batch_size=20,
        epochs=20,
    )
    numbers = trial(learning_rate=2e-3, limit=jnp.inf)
    start = TASK.score(train.init(config, numbers, tiny).params, tiny.test)
    history = jax.jit(train.train, static_argnums=0)(config, numbers, tiny)
    assert np.all(np.isfinite(history.loss))
    assert (
        -frechet.noise_floor(tiny.train.images[..., 0] / np.float32(255))
        > history.score[-1]
        > start
    )
    samples = TASK.samples(TASK.init(jax.random.key(0)), jax.random.key(0), 3)
    assert samples.shape == (3, 28, 28)
