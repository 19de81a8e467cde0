"""What is wrong is named, with the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import per_example, thresholds


def loss(params, x):
    return jnp.sum(params["w"] * x)


PARAMS, X = {"w": jnp.ones(3)}, jnp.ones((4, 3))


def printing(params, x):
    jax.debug.print("{}", x)
    return loss(params, x)


def of_a_batch(params, x, labels):
    chosen = jax.nn.log_softmax(x @ params["w"])[jnp.arange(len(labels)), labels]
    return -jnp.mean(chosen)


def broken(params, x):
    return x @ jnp.ones((7, 7))


BAD_CALLS = {
    "no scalar": (TypeError, "without a batch", lambda: (lambda p, x: p["w"] * x, PARAMS, X)),
    "a batch": (
        TypeError,
        "written for a whole batch",
        lambda: (of_a_batch, {"w": jnp.ones((3, 2))}, X, jnp.zeros(4, jnp.int32)),
    ),
    "wrong by itself": (TypeError, "dot_general requires", lambda: (broken, PARAMS, X)),
    "a pair": (TypeError, "has_aux=True", lambda: (lambda p, x: (loss(p, x), x), PARAMS, X)),
    "an integer loss": (TypeError, "real scalar", lambda: (lambda p, x: 1, PARAMS, X)),
    "lengths": (
        ValueError,
        "disagree",
        lambda: (lambda p, x, y: loss(p, x), PARAMS, X, jnp.ones(3)),
    ),
    "empty": (ValueError, "empty", lambda: (loss, PARAMS, X[:0])),
    "no batch": (ValueError, "no arrays", lambda: (lambda p: jnp.sum(p["w"]), PARAMS)),
    "no batch dimension": (ValueError, "no batch dimension", lambda: (loss, PARAMS, jnp.ones(()))),
    "integer parameters": (
        TypeError,
        r"params\['n'\]",
        lambda: (loss, {**PARAMS, "n": jnp.arange(3)}, X),
    ),
    "no parameters": (TypeError, "holds no arrays", lambda: (lambda p, x: jnp.sum(x), {}, X)),
    "no array": (TypeError, r"params\['n'\]", lambda: (loss, {**PARAMS, "n": 1.0}, X)),
    "side effects": (ValueError, "side effects", lambda: (printing, PARAMS, X)),
}


@pytest.mark.parametrize("strategy", ["auto", "vmap", "microbatch"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused(name, strategy):
    error, message, arguments = BAD_CALLS[name]
    bad, *call = arguments()
    size = {"microbatch_size": 2} if strategy == "microbatch" else {}
    with pytest.raises(error, match=message):
        per_example.clipped_grad(bad, 1.0, strategy=strategy, **size)(*call)


@pytest.mark.parametrize("name", BAD_CALLS)
def test_norms_refuse_the_same(name):
    error, message, arguments = BAD_CALLS[name]
    bad, *call = arguments()
    with pytest.raises(error, match=message):
        per_example.norms(bad)(*call)


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (-1.0, ValueError, "limit"),
        (float("nan"), ValueError, "limit"),
        ({"w": -1.0}, ValueError, "limit"),
        ("1", TypeError, "limit"),
        (jnp.ones(3), ValueError, "limit"),
        (1j, TypeError, "limit"),
        (jnp.complex64(1), TypeError, "complex"),
        ({"w": np.complex64(1)}, TypeError, "complex"),
        (lambda step: 1.0, TypeError, r"schedule\(step\)"),
        (thresholds.constant(1.0), TypeError, r"schedule\(step\)"),
    ],
)
def test_a_bad_limit_is_refused_at_once(limit, error, message):
    with pytest.raises(error, match=message):
        per_example.clipped_grad(loss, limit)


def test_a_limit_tree_of_the_wrong_structure():
    with pytest.raises(ValueError, match="no prefix"):
        per_example.clipped_grad(loss, {"v": 1.0})(PARAMS, X)
    with pytest.raises(ValueError, match="no prefix"):
        per_example.norms(loss, blocks={"v": "a"})(PARAMS, X)


@pytest.mark.parametrize(
    "options",
    [
        {"reduce": "max"},
        {"nonfinite": "drop"},
        {"strategy": "fast"},
        {"form": "ghost"},
        {"strategy": "microbatch"},
        {"strategy": "microbatch", "microbatch_size": 0},
        {"strategy": "microbatch", "microbatch_size": 2.0},
        {"microbatch_size": 2},
    ],
)
def test_an_unknown_word_is_refused(options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        per_example.clipped_grad(loss, 1.0, **options)


def test_other_unknown_words():
    with pytest.raises(ValueError, match="blocks"):
        per_example.norms(loss, blocks="layer")(PARAMS, X)
    with pytest.raises(ValueError, match="form"):
        per_example.norms(loss, form="ghost")
    with pytest.raises(ValueError, match="form"):
        per_example.explain(loss, PARAMS, X[0], form="ghost")


@pytest.mark.parametrize("mask", [jnp.ones(3, bool), jnp.ones(4)])
def test_a_mask_of_the_wrong_kind(mask):
    with pytest.raises(ValueError, match="example_mask"):
        per_example.clipped_grad(loss, 1.0)(PARAMS, X, example_mask=mask)


def test_has_aux_without_a_pair():
    with pytest.raises(TypeError, match="has_aux"):
        per_example.clipped_grad(loss, 1.0, has_aux=True)(PARAMS, X)
