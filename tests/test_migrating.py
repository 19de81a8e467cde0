"""The rows of docs/migrating.md: both sides give the same updates."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import measures, thresholds

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text()
ROWS = re.findall(r"^\| `(optax\.[^`]*\))` \| `([^`]*)` \|", PAGE, re.MULTILINE)
# The rows whose sides are transformations that can be evaluated as they stand.
PAIRS = [
    (theirs, ours) for theirs, ours in ROWS if not re.search(r"\btx\b|schedule|grads|tree", theirs)
]
RNG = np.random.default_rng(0)


def random_tree(scale):
    shapes = {"w": (4, 3), "b": (3,)}
    return {
        name: jnp.asarray(scale * RNG.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def test_migrating_the_page_has_the_rows_of_optax():
    assert len(PAIRS) == 8
    assert len(ROWS) == 11


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_migrating_from_optax(theirs, ours, scale):
    space = {"optax": optax, "jaxclip": jaxclip}
    params, gradient = random_tree(1.0), random_tree(scale)
    outs = []
    for code in (theirs, ours):
        tx = eval(code, space)
        outs.append(tx.update(gradient, tx.init(params), params)[0])
    for expected, found in zip(*map(jax.tree.leaves, outs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6)
    clips = any(not np.array_equal(outs[1][name], gradient[name]) for name in gradient)
    assert clips or scale < 100  # the row is not about a clip that does nothing


def test_migrating_per_example_clipping_of_optax():
    x = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    params = random_tree(1.0)

    def loss(params, x):
        return jnp.sum((x @ params["w"] + params["b"]) ** 2)

    gradients = jax.vmap(jax.grad(loss), (None, 0))(params, x)
    leaves, clipped = optax.per_example_global_norm_clip(jax.tree.leaves(gradients), 2.0)
    total, info = jaxclip.clipped_grad(loss, 2.0, reduce="sum")(params, x)
    for expected, found in zip(leaves, jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert info.clipped.sum() == clipped > 0


def test_migrating_bitsandbytes():
    """`p` picks the element `p` of the sorted squares of the last 100 norms, this one included."""
    norms = RNG.lognormal(size=300)
    percentile = 5
    tx = jaxclip.clip(measures.per_leaf(), thresholds.quantile(percentile / 99, window=100))
    state = tx.init(jnp.zeros(1))
    update = jax.jit(tx.update)
    squares = np.full(100, norms[0] ** 2)
    for step, norm in enumerate(norms):
        squares[step % 100] = norm**2
        limit = np.sqrt(np.sort(squares)[percentile])
        out, state = update(jnp.full(1, norm, jnp.float32), state)
        if step >= 99:
            np.testing.assert_allclose(out, [min(norm, limit)], rtol=1e-5)


def test_migrating_the_tests_that_the_page_names_exist():
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", PAGE))
    sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 8
    assert [name for name in named if f"def {name}(" not in sources] == []
