import dataclasses
import functools
import lzma
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from experiments.errors import BadInput
from experiments.tasks import char_lm
from experiments.tasks.char_lm import CharLm
from experiments.training import train
from experiments.training.config import Config, trial

TASK = CharLm(width=8, layers=1, heads=2, context=8, windows=640)


@pytest.fixture(scope="module")
def windows():
    return TASK.data()


@pytest.fixture(scope="module")
def params():
    return TASK.init(jax.random.key(0))


@pytest.fixture(scope="module")
def predicted():
    return jax.jit(TASK.predict)


@pytest.fixture(scope="module")
def value_and_grad():
    return jax.jit(jax.value_and_grad(TASK.loss))


def decoded(window):
    return "".join(char_lm.alphabet()[number] for number in window)


def test_the_text_is_the_one_of_the_repository():
    text = char_lm.text()
    assert text.startswith("The book of the generation of Jesus Christ, the son of David")
    assert text.endswith("be with you all. Amen.\n")
    assert (len(text), len(char_lm.alphabet())) == (949_469, 65)


@pytest.mark.parametrize("damage", [b"", b"x", lzma.compress(b"another text")])
def test_another_text_is_refused(monkeypatch, tmp_path, damage):
    path = tmp_path / "text.xz"
    path.write_bytes(damage)
    monkeypatch.setattr(char_lm, "TEXT", path)
    char_lm.text.cache_clear()
    with pytest.raises(BadInput, match=r"text\.xz is damaged"):
        char_lm.text()
    char_lm.text.cache_clear()


def test_the_gpt_has_more_than_a_million_parameters():
    shapes = jax.eval_shape(char_lm.GPT.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 1e6 < count < 3e6


def test_the_windows_are_pieces_of_the_text_and_the_last_tenth_is_the_test(windows):
    text = char_lm.text()
    first, last = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    assert windows.train.shape == (640, 9)
    assert windows.test.shape == (256, 9)
    assert all(decoded(window) in first for window in windows.train)
    assert all(decoded(window) in last for window in windows.test)


def test_the_windows_are_the_same_bytes_every_time_and_of_many_places(windows, equal):
    assert equal(windows, TASK.data())
    assert windows.train.dtype == np.uint8
    assert len(np.unique(windows.train, axis=0)) > 500


def test_a_prediction_depends_on_what_came_before_alone(params, windows, predicted):
    text = np.array(windows.test[:4])
    other = np.array(text)  # a copy, as JAX may read the array itself, and later than the call
    other[:, 5] = (text[:, 5] + 1) % len(char_lm.alphabet())
    before, _ = predicted(params, text)
    after, _ = predicted(params, other)
    same = np.asarray(before == after).all(axis=-1)
    assert same[:, :5].all()  # they predict the characters 1 to 5 from those before
    assert not same[:, 5:].any()


def test_a_prediction_depends_on_the_order_of_what_came_before(params, windows, predicted):
    text = np.array(windows.test[:4])
    text[:, :2] = [[1, 2]]
    before, _ = predicted(params, text)
    after, _ = predicted(params, text[:, [1, 0, *range(2, 9)]])
    assert not np.allclose(before[:, 4], after[:, 4], atol=1e-6)


def test_the_embedding_is_the_output_layer_too(params):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    symbols = len(char_lm.alphabet())
    assert shapes.count((symbols, 8)) == 1
    assert sum(symbols in shape for shape in shapes) == 1
    assert [name for name in names if re.search("output|bias", name)] == []


def test_the_embedding_is_used_at_the_input_and_at_the_output(params, windows, predicted):
    text = windows.test[:4]
    absent = np.setdiff1d(np.arange(len(char_lm.alphabet())), text)[0]

    def changed_columns(symbol):
        other = jax.tree.map(np.array, params)
        other["embedding"]["embedding"][symbol] += 1
        before, after = predicted(params, text)[0], predicted(other, text)[0]
        return np.flatnonzero(np.any(before != after, axis=(0, 1))).tolist()

    assert changed_columns(absent) == [absent]
    assert len(changed_columns(text[0, 0])) > 50


def test_without_knowledge_the_loss_is_the_log_of_the_alphabet(params, windows, value_and_grad):
    loss, _ = value_and_grad(jax.tree.map(jnp.zeros_like, params), windows.test)
    assert loss == pytest.approx(np.log(len(char_lm.alphabet())), rel=1e-5)


def test_the_score_is_the_share_told_right(params, windows, predicted):
    logits, _ = predicted(params, windows.test[:4])
    right = [
        int(logits[row, place].argmax()) == windows.test[row, place + 1]
        for row, place in np.ndindex(4, TASK.context)
    ]
    score = jax.jit(TASK.score)(params, windows.test[:4])
    assert score == pytest.approx(np.mean(right))


def test_bfloat16_is_for_the_blocks_and_not_for_the_parameters(params, windows, value_and_grad):
    task = dataclasses.replace(TASK, precision="bfloat16")
    initial = jax.eval_shape(task.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(initial, params)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention needs it
        traced = jax.jit(task.loss).trace(params, windows.test)
        loss = traced.lower().compile()(params, windows.test)
    products = re.findall(r"(\w+)\[[\d,]*\] = dot_general", str(traced.jaxpr))
    assert products.count("bf16") == 7
    assert products.count("f32") == 2  # the attention's scores, and the logits
    expected, _ = value_and_grad(params, windows.test)
    assert float(loss) == pytest.approx(float(expected), rel=0.02)
    assert loss != expected


@pytest.mark.slow
def test_a_clipped_training_learns_the_text(windows):
    config = Config(TASK, jaxclip.clip_by_global_norm, batch_size=16, epochs=6)
    fit = jax.jit(functools.partial(train.train, config))
    history = fit(trial(learning_rate=1.0, limit=1.0), windows)
    assert history.loss[0, 0] == pytest.approx(np.log(len(char_lm.alphabet())), abs=0.1)
    shares = np.bincount(windows.train.ravel()) / windows.train.size
    by_frequency = -np.sum(shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares)))
    assert history.loss[-1].mean() < by_frequency - 0.2  # which no context is needed for
    assert history.score[-1] > 0.25  # the commonest character is a space, 19 %
