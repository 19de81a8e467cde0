import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxclip
from experiments.studies import stress
from experiments.tasks.images import Images
from experiments.training.config import Config, trial
from experiments.training.data import Data
from experiments.training.train import train

STEPS = jnp.arange(12)
HIT = [3, 7, 11]  # of every fourth, beginning with the fourth
GRADIENT = {"kernel": jnp.full((3, 2), 2.0), "bias": jnp.ones(3, jnp.bfloat16)}
BATCH = Images(np.full((5, 28, 28, 1), 200, np.uint8), np.arange(5, dtype=np.uint8))


def over_steps(disturb):
    return jax.vmap(lambda step: disturb(step, jax.random.key(step), GRADIENT))(STEPS)


@pytest.mark.parametrize(
    "stressor",
    [
        stress.BadBatches(4, 10.0),
        stress.HugeExamples(2, 10.0),
        stress.Spikes(4, 10.0),
        stress.Nans(4),
        stress.HeavyTails(0.1, 1.5),
    ],
)
def test_a_config_that_holds_a_stressor_is_still_hashable(stressor):
    assert hash(stressor) == hash(dataclasses.replace(stressor))
    assert stressor == dataclasses.replace(stressor)


def test_every_fourth_batch_is_bad_and_no_other():
    batches = jax.vmap(stress.BadBatches(4, 10.0), (0, None))(STEPS, BATCH)
    means = np.asarray(batches.images).mean(axis=(1, 2, 3, 4))
    expected = np.full(12, 200.0)
    expected[HIT] = 2000
    np.testing.assert_allclose(means, expected)
    np.testing.assert_array_equal(batches.labels, np.tile(BATCH.labels, (12, 1)))


def test_the_first_examples_of_every_batch_are_huge():
    batch = stress.HugeExamples(2, 10.0)(STEPS[0], BATCH)
    means = np.asarray(batch.images).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [2000, 2000, 200, 200, 200])
    np.testing.assert_array_equal(batch.labels, BATCH.labels)


def test_every_fourth_gradient_is_a_spike_and_no_other():
    spiky = over_steps(stress.Spikes(4, 10.0))
    factors = np.ones(12)
    factors[HIT] = 10
    for name, leaf in GRADIENT.items():
        assert spiky[name].dtype == leaf.dtype
        expected = factors.reshape(-1, *[1] * leaf.ndim) * np.asarray(leaf, np.float64)
        np.testing.assert_array_equal(np.asarray(spiky[name], np.float64), expected)


def test_every_fourth_gradient_is_nan_and_no_other_is_changed():
    broken = over_steps(stress.Nans(4))
    for name, leaf in GRADIENT.items():
        assert broken[name].dtype == leaf.dtype
        flat = np.asarray(broken[name], np.float32).reshape(12, -1)
        assert np.isnan(flat[HIT]).all()
        np.testing.assert_array_equal(np.delete(flat, HIT, axis=0), leaf.max())


@pytest.mark.parametrize("degrees", [1.0, 1.5, 2.0, 5.0])
def test_the_noise_is_of_the_t_distribution(degrees):
    numbers = np.asarray(stress.student_t(jax.random.key(0), degrees, (20_000,)))
    assert np.isfinite(numbers).all()
    assert stats.kstest(numbers, stats.t(degrees).cdf).pvalue > 0.01
    assert stats.kstest(numbers, stats.norm.cdf).pvalue < 1e-6


def test_the_noise_keeps_types_and_is_another_in_every_step_and_leaf():
    gradient = {"one": jnp.ones(4), "two": jnp.ones(4), "low": jnp.ones(4, jnp.bfloat16)}
    add = jax.jit(stress.HeavyTails(0.1, 1.5))
    first, second = (add(STEPS[0], jax.random.key(seed), gradient) for seed in (0, 1))
    chex.assert_trees_all_equal_shapes_and_dtypes(first, gradient)
    chex.assert_trees_all_equal(first, add(STEPS[0], jax.random.key(0), gradient))
    rows = np.stack([first["one"], first["two"], second["one"], second["two"]])
    assert len(np.unique(rows)) == rows.size


def test_the_scale_multiplies_the_noise():
    zero = {"w": jnp.zeros(50)}
    one, ten = (
        stress.HeavyTails(scale, 1.5)(STEPS[0], jax.random.key(0), zero)["w"] for scale in (1, 10)
    )
    np.testing.assert_allclose(10 * one, ten, rtol=1e-6)


def test_a_share_of_the_labels_is_wrong_and_evenly_so(tiny):
    labels = (np.arange(10_000) % 10).astype(np.uint8)
    data = Data(Images(np.zeros((10_000, 1)), labels), tiny.test)
    noisy = stress.wrong_labels(data, 0.4)
    changed = noisy.train.labels != labels
    assert changed.sum() == 4000
    assert noisy.train.labels.dtype == np.uint8
    assert noisy.test is data.test
    shifts = (noisy.train.labels[changed].astype(int) - labels[changed]) % 10
    assert np.bincount(shifts, minlength=10)[1:] == pytest.approx(4000 / 9, rel=0.2)
    np.testing.assert_array_equal(data.train.labels, np.arange(10_000) % 10)


def test_wrong_labels_depend_on_the_seed_alone(tiny):
    one, same, other = (
        stress.wrong_labels(tiny, 0.5, seed=seed).train.labels for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@dataclasses.dataclass(frozen=True)
class Steady:
    """A task whose gradient is always 1 and whose loss is the mean of the batch's images."""

    def data(self, folder=None):
        return Data(Images(np.ones((24, 1), np.float32), np.zeros(24, np.uint8)), np.zeros(1))

    def init(self, key):
        return jnp.zeros(1)

    def loss(self, params, batch):
        return batch.images.mean() + params.sum() - jax.lax.stop_gradient(params.sum())

    def score(self, params, test):
        return params.sum()


def test_in_a_training_the_steps_are_counted_over_the_epochs():
    steady = Steady()
    config = Config(
        steady,
        jaxclip.clip_by_global_norm,
        corrupt=stress.BadBatches(5, 100.0),
        disturb=stress.Spikes(4, 10.0),
        batch_size=4,
        epochs=2,
    )
    history = jax.jit(lambda numbers: train(config, numbers, steady.data()))(trial(limit=jnp.inf))
    assert np.flatnonzero(history.loss.ravel() > 1).tolist() == [4, 9]
    assert np.flatnonzero(history.norm.ravel() > 1).tolist() == HIT


def test_an_overflow_makes_the_largest_entry_infinite_every_so_often():
    gradient = {"a": jnp.array([1.0, -3.0]), "b": jnp.array([2.0])}
    overflow = stress.Overflow(every=5)
    calm = overflow(jnp.int32(3), jax.random.key(0), gradient)
    np.testing.assert_array_equal(calm["a"], gradient["a"])
    hit = overflow(jnp.int32(4), jax.random.key(0), gradient)
    np.testing.assert_array_equal(hit["a"], [1, -np.inf])
    np.testing.assert_array_equal(hit["b"], [2])
