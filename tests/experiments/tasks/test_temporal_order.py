import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from experiments.tasks.temporal_order import Sequences, TemporalOrder
from experiments.training import train
from experiments.training.config import Config, trial

TASK = TemporalOrder(length=10, units=8, sequences=400)


@pytest.fixture(scope="module")
def drawn():
    return TASK.data()


@pytest.fixture(scope="module")
def params():
    return TASK.init(jax.random.key(0))


def test_the_class_is_which_of_the_two_symbols_came_and_in_which_order():
    data = TemporalOrder(length=40, sequences=300).data()
    for symbols, kind in zip(data.train.symbols, data.train.classes, strict=True):
        first, second = np.flatnonzero(symbols < 2)
        assert 4 <= first < 8
        assert 16 <= second < 20
        assert ("AA", "AB", "BA", "BB")[kind] == "AB"[symbols[first]] + "AB"[symbols[second]]


def test_classes_and_distractors_are_equally_frequent():
    data = TemporalOrder(length=40, sequences=2000).data()
    assert np.bincount(data.train.classes, minlength=4) == pytest.approx(500, abs=100)
    distractors = np.bincount(data.train.symbols.ravel())[2:]
    assert len(distractors) == 4
    assert distractors == pytest.approx(19_000, rel=0.05)


def test_the_sequences_are_the_same_bytes_every_time_and_not_those_of_the_test(drawn, equal):
    assert equal(drawn, TASK.data())
    assert drawn.train.symbols.shape == (400, 10)
    assert drawn.test.symbols.shape == (1000, 10)
    assert drawn.train.symbols.dtype == drawn.train.classes.dtype == np.uint8
    assert not np.array_equal(drawn.train.symbols, drawn.test.symbols[:400])


def test_the_logits_are_what_a_hand_written_net_gives(params, drawn):
    symbols = drawn.test.symbols[:20]
    inputs, recurrent, output = (
        jax.tree.map(np.asarray, params[name]) for name in ("inputs", "recurrent", "output")
    )
    state = np.zeros((20, 8), np.float32)
    for t in range(10):
        now = inputs["kernel"][symbols[:, t]] + inputs["bias"]
        state = np.tanh(state @ recurrent["kernel"] + now)
    expected = state @ output["kernel"] + output["bias"]
    np.testing.assert_allclose(TASK.logits(params, symbols), expected, atol=1e-5)


@pytest.mark.parametrize("radius", [0.5, 1.0])
def test_the_recurrent_weights_turn_and_scale_by_the_radius(radius):
    params = TemporalOrder(units=8, radius=radius).init(jax.random.key(0))
    values = np.linalg.eigvals(np.asarray(params["recurrent"]["kernel"]))
    np.testing.assert_allclose(np.abs(values), radius, rtol=1e-5)


def test_the_score_is_the_share_told_right(params, drawn):
    symbols = drawn.test.symbols[:50]
    told = np.asarray(TASK.logits(params, symbols)).argmax(-1).astype(np.uint8)
    wrong = told.copy()
    wrong[:5] = (told[:5] + 1) % 4
    assert TASK.score(params, Sequences(symbols, told)) == 1
    assert jnp.allclose(TASK.score(params, Sequences(symbols, wrong)), 0.9)


def test_a_clipped_training_learns_the_order():
    task = TemporalOrder(length=10, units=20, sequences=4000)
    config = Config(task, jaxclip.clip_by_global_norm, batch_size=20, epochs=3)
    fit = jax.jit(functools.partial(train.train, config))
    history = fit(trial(learning_rate=0.3, limit=0.3), task.data())
    assert history.score[-1] > 0.95  # guessing gives 0.25
