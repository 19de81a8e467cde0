import math

import jax
import numpy as np

from experiments.training.sampling import Poisson, sample, shuffle


def test_shuffled_batches_hold_every_example_once_but_those_that_fill_no_batch():
    rows, mask = shuffle(jax.random.key(0), 23, 4, 5)
    assert mask is None
    assert rows.shape == (4, 5)
    assert len(set(np.ravel(rows).tolist())) == 20


def test_poisson_batches_of_an_epoch_are_drawn_one_by_one():
    rows, mask = Poisson(room=9)(jax.random.key(0), 12, 5, 4)
    assert rows.shape == mask.shape == (5, 9)
    for key, row, kept in zip(jax.random.split(jax.random.key(0), 5), rows, mask, strict=True):
        expected, padding = sample(key, 12, 4 / 12, 9)
        np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(kept, padding)


def test_every_example_is_sampled_alone_with_the_probability():
    """Of 4,000 batches of 50 examples, within five standard errors."""
    probability = 0.3
    keys = jax.random.split(jax.random.key(0), 4000)
    rows, mask = jax.vmap(lambda key: sample(key, 50, probability, 50))(keys)
    drawn = np.zeros((4000, 50))
    np.add.at(drawn, (np.repeat(np.arange(4000), 50), np.ravel(rows)), np.ravel(mask))
    assert drawn.max() == 1  # no example is twice in a batch
    error = math.sqrt(probability * (1 - probability) / 4000)
    assert np.abs(drawn.mean(0) - probability).max() < 5 * error
    sizes = drawn.sum(1)
    variance = 50 * probability * (1 - probability)
    np.testing.assert_allclose(sizes.var(), variance, rtol=5 * math.sqrt(2 / 4000))
    correlation = np.corrcoef(drawn.T) - np.eye(50)
    assert np.abs(correlation).max() < 6 / math.sqrt(4000)


def test_what_has_no_room_is_dropped_and_what_has_is_kept():
    rows, mask = sample(jax.random.key(0), 10, 1.0, 4)
    assert mask.all()
    assert len(set(rows.tolist())) == 4
    _, none = sample(jax.random.key(0), 10, 0.0, 4)
    assert not none.any()
