import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from experiments.errors import BadInput
from experiments.tasks.mnist import Mnist
from experiments.training import train
from experiments.training.config import Config, Trial, trial
from experiments.training.data import Data
from tests.experiments.line import LINE, POINTS, Line


@dataclasses.dataclass(frozen=True)
class Log:
    """A task that logs what it is given: the loss of a batch is the batch, its gradient (3, 4)."""

    def init(self, key):
        return jnp.zeros(2)

    def loss(self, params, batch):
        slope = jnp.array([3.0, 4.0]) @ params
        return batch[0] + slope - jax.lax.stop_gradient(slope)

    def score(self, params, test):
        return params[0]


NUMBERS = Data(train=np.arange(23, dtype=np.float32) * 1024, test=np.zeros(1, np.float32))
LOGGED = Config(Log(), jaxclip.clip_by_global_norm, batch_size=1, epochs=3)
FITTED = Config(Line(), jaxclip.clip_by_global_norm, batch_size=8, epochs=4)


def fit(config, numbers, data):
    return jax.jit(functools.partial(train.train, config))(numbers, data)


@pytest.fixture(scope="module")
def logged():
    return fit(LOGGED, trial(learning_rate=0.5), NUMBERS)


@pytest.fixture(scope="module")
def fitted():
    return jax.jit(functools.partial(train.train, FITTED))


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own(logged):
    for losses in np.asarray(logged.loss):
        np.testing.assert_allclose(np.sort(losses), NUMBERS.train, atol=0.01)
    orders = {tuple(losses) for losses in np.asarray(logged.loss).round()}
    assert len(orders) == 3


def test_what_does_not_fill_a_batch_is_left_out():
    config = dataclasses.replace(LOGGED, batch_size=5)
    shapes = jax.eval_shape(functools.partial(train.train, config), trial(), NUMBERS)
    assert shapes.loss.shape == (3, 4)
    assert shapes.score.shape == (3,)


def test_the_clip_comes_before_the_optimizer(logged):
    assert np.all(np.asarray(logged.norm) == 5)
    assert np.all(np.asarray(logged.clipped) == 1)
    # 23 steps of 0.5 along (0.6, 0.8)
    np.testing.assert_allclose(logged.score[0], -23 * 0.5 * 0.6, rtol=1e-5)


def test_the_clip_may_come_last():
    config = dataclasses.replace(LOGGED, clip_last=True)
    last = fit(config, trial(learning_rate=0.5), NUMBERS)
    assert np.all(np.asarray(last.norm) == 2.5)
    np.testing.assert_allclose(last.score[0], -23 * 0.6, rtol=1e-5)


def test_what_is_held_out_has_a_score_of_its_own():
    numbers = trial(learning_rate=0.3)
    history = fit(FITTED, numbers, LINE._replace(validation=(POINTS, 3 * POINTS)))
    other = fit(FITTED, numbers, LINE._replace(test=(POINTS, 3 * POINTS)))
    np.testing.assert_array_equal(history.validation, other.score)
    assert np.all(np.isnan(other.validation))
    assert np.all(history.validation != history.score)


def reference_step(layers, images, labels, rate, limit):
    """The step theta - alpha clip(grad) of an MLP in NumPy: parameters, loss and norm."""
    outputs = [images]
    for kernel, bias in layers[:-1]:
        outputs.append(np.maximum(outputs[-1] @ kernel + bias, 0))
    kernel, bias = layers[-1]
    logits = outputs[-1] @ kernel + bias
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    shares = exponentials / exponentials.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(shares[rows, labels]).mean()
    back = (shares - np.eye(10)[labels]) / len(labels)
    gradients = []
    for (kernel, _), output in zip(layers[::-1], outputs[::-1], strict=True):
        gradients.append((output.T @ back, back.sum(0)))
        back = (back @ kernel.T) * (output > 0)
    norm = np.sqrt(sum((part**2).sum() for gradient in gradients for part in gradient))
    factor = limit / norm if norm > limit else 1.0
    moved = [
        tuple(part - rate * factor * way for part, way in zip(layer, gradient, strict=True))
        for layer, gradient in zip(layers, gradients[::-1], strict=True)
    ]
    return moved, loss, norm


def to_layers(params):
    return [
        tuple(np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
        for _, layer in sorted(params["layers"].items())
    ]


@pytest.mark.parametrize("limit", [0.5, 1.0, np.inf])
def test_the_loop_is_theta_minus_alpha_clip_of_the_gradient_number_by_number(tiny, limit):
    """Forward, loss, gradient, clip and update in NumPy, in double precision, step for step."""
    config = Config(Mnist(hidden=(16, 12)), jaxclip.clip_by_global_norm, batch_size=50, epochs=3)
    numbers = trial(seed=3, learning_rate=0.3, limit=limit)
    state = train.init(config, numbers, tiny)
    layers = to_layers(state.params)
    clipped = 0
    for number in range(config.epochs):
        order, _ = config.sampler(
            jax.random.fold_in(train.keys(numbers.seed).batches, number), 200, 4, 50
        )
        state, history = jax.jit(functools.partial(train.epoch, config))(numbers, tiny, state)
        for step, rows in enumerate(np.asarray(order)):
            images = tiny.train.images[rows].reshape(50, -1) / 255
            layers, loss, norm = reference_step(
                layers, images, tiny.train.labels[rows], float(numbers.learning_rate), limit
            )
            np.testing.assert_allclose(history.loss[step], loss, rtol=1e-5)
            np.testing.assert_allclose(history.norm[step], norm, rtol=1e-5)
            assert bool(history.clipped[step]) == (norm > limit)
            clipped += norm > limit
        for ours, reference in zip(to_layers(state.params), layers, strict=True):
            for mine, wanted in zip(ours, reference, strict=True):
                np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-6)
    assert (clipped > 0) == (limit < np.inf)


def test_to_look_at_the_norm_first_and_clip_above_one_is_the_same_step_for_step():
    """`if norm > 1: gradient /= norm`, as it is often written, in eager JAX."""
    numbers = trial(seed=1, learning_rate=0.3)
    state = train.init(FITTED, numbers, LINE)
    params, clipped = state.params, []
    for number in range(FITTED.epochs):
        order, _ = FITTED.sampler(
            jax.random.fold_in(train.keys(numbers.seed).batches, number), 40, 5, 8
        )
        state, history = train.epoch(FITTED, numbers, LINE, state)
        for step, rows in enumerate(np.asarray(order)):
            gradient = jax.grad(FITTED.task.loss)(params, (POINTS[rows], 2 * POINTS[rows] + 1))
            norm = optax.tree.norm(gradient)
            if norm > 1.0:
                gradient = jax.tree.map(lambda leaf, norm=norm: leaf / norm, gradient)
            clipped.append(bool(norm > 1.0))
            assert bool(history.clipped[step]) == clipped[-1]
            params = jax.tree.map(
                lambda leaf, way: leaf - numbers.learning_rate * way, params, gradient
            )
    assert 0 < np.mean(clipped) < 1
    chex.assert_trees_all_close(state.params, params, rtol=1e-6)


def test_the_limit_follows_its_schedule():
    config = dataclasses.replace(LOGGED, schedule=True)
    limits = fit(config, trial(limit=2.0, last_limit=1.0, by=2 / 3), NUMBERS).limit
    expected = np.interp(np.arange(69), [0, 46], [2, 1])
    np.testing.assert_allclose(np.asarray(limits).ravel(), expected, rtol=1e-6)


def test_a_clip_without_metrics_leaves_the_norm_of_the_gradient():
    bare = fit(dataclasses.replace(LOGGED, clip=optax.clip_by_global_norm), trial(), NUMBERS)
    assert np.all(np.asarray(bare.norm) == 5)
    assert np.all(np.isnan(bare.limit))


def test_epoch_by_epoch_is_the_same_training_bit_for_bit(fitted, equal):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def epoch(numbers, state):
        return train.epoch(FITTED, numbers, LINE, state)

    numbers = trial(learning_rate=0.3)
    state = train.init(FITTED, numbers, LINE)
    epochs = []
    for _ in range(FITTED.epochs):
        state, history = epoch(numbers, state)
        epochs.append(history)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *epochs)
    assert equal(stacked._replace(probed=np.zeros(0)), fitted(numbers, LINE))
    assert int(state.epoch) == FITTED.epochs
    assert stacked.loss[-1].mean() < 0.1 * stacked.loss[0].mean()


def test_trials_run_side_by_side_as_they_run_alone(fitted):
    many = [trial(0, 0.1, 1.0), trial(1, 0.05, 0.2), trial(2, 0.1, np.inf)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    together = jax.jit(jax.vmap(functools.partial(train.train, FITTED), (0, None)))(stacked, LINE)
    for index, numbers in enumerate(many):
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, index=index: leaf[index], together),
            fitted(numbers, LINE),
            rtol=1e-5,
            atol=1e-6,
        )
    assert fitted._cache_size() == 1


def test_the_seed_decides_everything(fitted, equal):
    assert equal(fitted(trial(5), LINE), fitted(trial(5), LINE))
    assert not equal(fitted(trial(5), LINE), fitted(trial(6), LINE))


@dataclasses.dataclass(frozen=True)
class Keyed(Log):
    """A task whose first parameters are the key that they are drawn by."""

    def init(self, key):
        return jax.random.key_data(key)


def test_no_key_has_two_purposes():
    """Flax folds counters into the key of the parameters, as the loop does for the others."""
    derived = []
    for key in train.keys(jnp.int32(0)):
        derived += [key, *(jax.random.fold_in(key, i) for i in range(20))]
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in derived}
    assert len(data) == len(derived)


def test_the_examples_are_shuffled_by_another_key_than_the_parameters_are_drawn_by(logged):
    """Flax draws the parameters by the key with a counter folded in, 0, 1, 2 and so on."""
    state = train.init(dataclasses.replace(LOGGED, task=Keyed()), trial(), NUMBERS)
    params = jax.random.wrap_key_data(state.params)
    orders = np.asarray(logged.loss / 1024).round()
    for counter in range(9):
        derived = jax.random.permutation(jax.random.fold_in(params, counter), 23)
        assert not any(np.array_equal(order, derived) for order in orders)
    for epoch, order in enumerate(orders):
        key = jax.random.fold_in(train.keys(0).batches, epoch)
        np.testing.assert_array_equal(order, jax.random.permutation(key, 23))


def warmed_up(limit):
    """A clip after another one, as a warm-up may be, which is the first in the state."""
    return optax.chain(
        jaxclip.clip_by_global_norm(4.0, name="warmup"),
        jaxclip.clip_by_leaf_norm(limit, name="clip"),
        jaxclip.clip_by_global_norm(jnp.inf, name="clip_after"),
    )


def test_the_metrics_are_those_of_the_clip_under_study_wherever_it_is():
    history = fit(dataclasses.replace(LOGGED, clip=warmed_up), trial(limit=2.0), NUMBERS)
    np.testing.assert_allclose(history.norm, 4, rtol=1e-6)
    np.testing.assert_array_equal(history.limit, 2)
    np.testing.assert_array_equal(history.clipped, 1)


def test_the_only_clip_is_the_one_under_study_whatever_its_name():
    config = dataclasses.replace(
        LOGGED, clip=lambda limit: jaxclip.clip_by_global_norm(limit, name="head")
    )
    np.testing.assert_array_equal(fit(config, trial(), NUMBERS).limit, 1)


def test_several_clips_of_which_none_is_named_are_refused():
    config = dataclasses.replace(
        LOGGED,
        clip=lambda limit: optax.chain(
            *(jaxclip.clip_by_global_norm(limit, name=name) for name in ("head", "tail"))
        ),
    )
    with pytest.raises(BadInput, match="metrics of head, tail, and none is named clip: give"):
        fit(config, trial(), NUMBERS)


def test_batches_and_gradients_are_disturbed_at_the_steps_that_are_meant():
    config = dataclasses.replace(
        LOGGED,
        corrupt=lambda step, batch: jnp.where(step % 10 == 9, -1.0, batch),
        disturb=lambda step, key, gradient: jnp.where(step % 23 == 5, 2.0, 1.0) * gradient,
    )
    history = fit(config, trial(learning_rate=0.0), NUMBERS)
    steps = np.arange(69)
    np.testing.assert_array_equal(np.ravel(history.loss == -1), steps % 10 == 9)
    np.testing.assert_array_equal(np.ravel(history.norm), np.where(steps % 23 == 5, 10, 5))


def test_what_disturbs_a_gradient_has_a_key_of_its_own_every_step():
    config = dataclasses.replace(LOGGED, disturb=lambda step, key, _: jax.random.normal(key, (2,)))
    norms = fit(config, trial(), NUMBERS).norm
    assert len(np.unique(norms)) == norms.size


def test_every_example_is_clipped_where_that_is_asked_for():
    steep = Data(train=(POINTS, np.where(POINTS > 0.9, 1e4, POINTS)), test=LINE.test)
    config = dataclasses.replace(
        FITTED, clip=lambda _: optax.identity(), per_example=jaxclip.value_and_clipped_grad
    )
    history = fit(config, trial(limit=0.5), jax.tree.map(jnp.float32, steep))
    assert np.all(np.asarray(history.limit) == 0.5)
    params = config.task.init(train.keys(0).params)
    order = jax.random.permutation(jax.random.fold_in(train.keys(0).batches, 0), 40)[:8]
    x, y = jax.tree.map(lambda column: column[order], steep.train)
    error = params["slope"] * x + params["height"] - y
    norms = np.abs(2 * error) * np.sqrt(x**2 + 1)
    np.testing.assert_allclose(history.norm[0, 0], np.sqrt(np.mean(norms**2)), rtol=1e-5)
    np.testing.assert_allclose(history.clipped[0, 0], np.mean(norms > 0.5), rtol=1e-6)
    scheduled = dataclasses.replace(config, schedule=True)
    limits = fit(scheduled, trial(limit=1.0, last_limit=0.0), LINE).limit
    np.testing.assert_allclose(np.ravel(limits), np.linspace(1, 0, 20, endpoint=False), atol=1e-6)


@pytest.mark.parametrize("optimizer", [optax.adam, optax.adamw])
def test_any_optimizer_of_a_learning_rate_will_do(optimizer):
    config = dataclasses.replace(FITTED, optimizer=optimizer)
    with jax.numpy_dtype_promotion("standard"):  # Optax 0.2.8 promotes in Adam's bias correction
        history = fit(config, trial(learning_rate=0.1), LINE)
    assert history.score[-1] > history.score[0]


def test_a_trial_is_all_arrays_and_a_config_is_hashable():
    made = trial(**{"clip.decay": 0.9, "optimizer.momentum": 0.5})
    leaves = jax.tree.leaves(made)
    assert all(isinstance(number, jax.Array) and number.ndim == 0 for number in leaves)
    assert len(leaves) == 11
    assert (made.clip.keys(), made.optimizer.keys()) == ({"decay"}, {"momentum"})
    assert trial(limit=3.0).last_limit == 3.0
    assert isinstance(trial(), Trial)
    assert len({FITTED, dataclasses.replace(FITTED), LOGGED}) == 2
    assert trial(limit=3.0, first_share=0.5, last_share=2.0)[2:4] == (1.5, 6.0)
    with pytest.raises(TypeError, match="no argument for one of momentum"):
        trial(momentum=0.5)


def test_further_numbers_of_a_trial_reach_the_clip_and_the_optimizer():
    asked = {}

    def clip(limit, **further):
        asked.update(further)
        return jaxclip.clip_by_global_norm(limit)

    config = dataclasses.replace(LOGGED, clip=clip, optimizer=optax.sgd)
    numbers = trial(**{"clip.decay": 0.25, "optimizer.momentum": 0.5})
    built = train.optimizer(config, numbers, 10)
    assert asked == {"decay": 0.25}
    [trace] = [s for s in jax.tree.leaves(built.init(jnp.zeros(2))) if s.shape == (2,)]
    assert not trace.any()


def test_the_learning_rate_follows_its_schedule():
    config = dataclasses.replace(LOGGED, epochs=1, rate_schedule=True)
    numbers = trial(learning_rate=0.5, last_rate=0.0, rate_shape=0)
    # A gradient of norm 1 makes steps of the rate, which fall on a line from 0.5 to 0.
    [score] = fit(config, numbers, NUMBERS).score
    np.testing.assert_allclose(score, -0.6 * 0.5 * np.sum(1 - np.arange(23) / 23), rtol=1e-5)


def test_what_is_watched_and_probed_is_of_the_steps_and_of_the_end(equal):
    config = dataclasses.replace(
        FITTED,
        watch=lambda gradient: jnp.stack(jax.tree.leaves(gradient)),
        probe=lambda params, test: jnp.stack([params["slope"], params["height"], len(test[0])]),
    )
    numbers = trial(learning_rate=0.3)
    history = fit(config, numbers, LINE)
    assert history.watched.shape == (4, 5, 2)
    np.testing.assert_allclose(np.linalg.norm(history.watched, axis=-1), history.norm, rtol=1e-5)
    slope, height, size = history.probed
    np.testing.assert_allclose(
        history.score[-1], -np.mean(((slope - 2) * POINTS + height - 1) ** 2), rtol=1e-5
    )
    assert size == len(POINTS)
    bare = fit(FITTED, numbers, LINE)
    assert (bare.watched.shape, bare.probed.shape) == ((4, 5, 0), (0,))
    assert equal(bare._replace(watched=0, probed=0), history._replace(watched=0, probed=0))


def test_what_is_drawn_differs_from_step_to_step_and_not_from_run_to_run(equal):
    def draw(key, batch):
        return batch + jax.random.uniform(key)

    data = NUMBERS._replace(train=np.zeros(23, np.float32))
    config = dataclasses.replace(LOGGED, draw=draw)
    history = fit(config, trial(seed=1), data)
    assert len(np.unique(history.loss)) == history.loss.size
    assert equal(history, fit(config, trial(seed=1), data))
    assert not np.any(np.isin(fit(config, trial(seed=2), data).loss, history.loss))


def test_numbers_of_the_task_reach_its_loss():
    @dataclasses.dataclass(frozen=True)
    class Scaled(Line):
        def loss(self, params, batch, scale=1.0):
            return scale * super().loss(params, batch)

    config = dataclasses.replace(FITTED, task=Scaled())
    once = fit(config, trial(), LINE)
    twice = fit(config, trial(**{"task.scale": 2.0}), LINE)
    np.testing.assert_allclose(twice.loss[0, 0], 2 * once.loss[0, 0], rtol=1e-6)
    with pytest.raises(TypeError, match="names that begin with"):
        trial(scale=2.0)
