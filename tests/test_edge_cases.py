"""`docs/edge-cases.md`, row by row."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.helpers import same_bits

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "edge-cases.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
OUTCOMES = [tuple(row) for row in ROWS if len(row) == 3 and row[0] != "norm"]
HELD_BY = [row[-1].strip("`") for row in ROWS if len(row) == 2]

METHODS = {
    "value": jaxclip.clip_by_value,
    "global": jaxclip.clip_by_global_norm,
    "largest": functools.partial(jaxclip.clip_by_global_norm, ord=np.inf),
    "leaf": jaxclip.clip_by_leaf_norm,
    "unit": jaxclip.clip_by_unit_norm,
    "rms": jaxclip.clip_by_block_rms,
    "singular values": jaxclip.clip_singular_values,
}
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]

# One number makes a gradient of one entry, whose norm is its size under every measure.
NORMS = {
    "0": [0.0, -0.0],
    "within the limit": [0.5, -0.25, 1e-4, 6e-8, 1e-30, 1e-40],
    "finite": [0.0, -0.0, 1e-40, 0.5, -4e4, 1e38, -3e38],
    "beyond the limit": [1.5, -100.0, 4e4, 1e30, 3e38],
    "positive": [1e-40, 6e-8, 0.5, -4e4, 3e38],
    "nan or infinite": [np.nan, np.inf, -np.inf],
    "any": [0.5, -4e4],
}
LIMITS = {
    "any number": [0.0, 1e-3, 1.0, np.inf],
    "finite": [1.0],
    "infinite": [np.inf],
    "0": [0.0],
    "negative, traced": [-1.0, -np.inf],
    "nan, traced": [np.nan],
}


def unique(*lists):
    """The numbers of some lists, each once; nan and the two zeros are told apart by their text."""
    return list({repr(float(x)): float(x) for numbers in lists for x in numbers}.values())


ALL_NORMS, ALL_LIMITS = unique(*NORMS.values()), unique(*LIMITS.values())


@functools.cache
def outcomes(method: str, dtype, nonfinite: str):
    """Gradients of one entry, one for each norm, and what each limit makes of them."""

    def one(gradient, limit):
        tx = METHODS[method](limit, nonfinite=nonfinite)
        out, state = tx.update(gradient, tx.init(gradient))
        return out, jaxclip.metrics(state)["clip"].nonfinite

    gradients = jnp.asarray(np.array(ALL_NORMS, np.float32)).astype(dtype).reshape(-1, 1, 1)
    of_all = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    outs, counts = of_all(gradients, jnp.asarray(ALL_LIMITS, jnp.float32))
    return np.asarray(gradients), np.asarray(outs), np.asarray(counts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("row", OUTCOMES, ids=[f"{norm}-{limit}" for norm, limit, _ in OUTCOMES])
def test_edge_cases_a_row_is_true(row, method):
    norm, limit, outcome = row
    if outcome.startswith("`ValueError`"):
        for number in (-1.0, -1, np.nan, np.float32(-1)):
            with pytest.raises(ValueError, match="limit"):
                METHODS[method](number)
        return
    columns = [ALL_LIMITS.index(x) if x == x else _nan(ALL_LIMITS) for x in LIMITS[limit]]
    names = [repr(x) for x in ALL_NORMS]
    rows = np.array([names.index(repr(float(x))) for x in NORMS[norm]])
    for dtype in DTYPES:
        for nonfinite, bad in (("propagate", np.nan), ("zero", 0.0)):
            gradients, outs, counts = outcomes(method, dtype, nonfinite)
            chosen = rows[_belongs(norm, gradients[rows])]
            gradients, outs = gradients[chosen], outs[np.ix_(chosen, columns)]
            counts = counts[np.ix_(chosen, columns)]
            values = outs.astype(np.complex64 if dtype == jnp.complex64 else np.float32)
            if outcome == "unchanged":
                expected = np.broadcast_to(gradients[:, None], outs.shape)
                assert same_bits(np.ascontiguousarray(expected), np.ascontiguousarray(outs))
            elif outcome == "scaled to the limit":
                ulps = 8 * float(jnp.finfo(dtype).eps)
                np.testing.assert_allclose(np.abs(values), 1.0, rtol=ulps)
                signs = np.sign(gradients.astype(values.dtype).real)[:, None]
                np.testing.assert_array_equal(
                    np.sign(values.real), np.broadcast_to(signs, values.shape)
                )
            elif outcome in ("zero", "as at a limit of 0"):
                assert not np.any(values)
            else:
                assert outcome == "not finite"
                np.testing.assert_array_equal(np.isnan(values), np.isnan(bad))
                assert np.isnan(bad) or not np.any(values)
                np.testing.assert_array_equal(counts, 1)


def _nan(numbers: list[float]) -> int:
    return [repr(x) for x in numbers].index("nan")


def _belongs(norm: str, gradients: np.ndarray) -> np.ndarray:
    """Which numbers still are of their row when they have been rounded to the dtype."""
    with np.errstate(invalid="ignore"):
        sizes = np.abs(gradients.astype(np.complex128)).ravel()
    within = {"within the limit": sizes <= 1, "beyond the limit": sizes > 1, "positive": sizes > 0}
    finite = within.get(norm, np.full(len(sizes), True)) & np.isfinite(sizes)
    if gradients.dtype == jnp.bfloat16 and not jax.__version__.startswith("0.10."):
        # XLA selects some of them in float32 since, and flushes what is subnormal on the way.
        finite &= (sizes == 0) | (sizes >= np.finfo(np.float32).tiny)
    return ~np.isfinite(sizes) if norm == "nan or infinite" else finite


def test_edge_cases_every_phrase_of_the_table_is_known():
    assert len(OUTCOMES) == 9
    assert {norm for norm, _, _ in OUTCOMES} == set(NORMS)
    assert {limit for _, limit, _ in OUTCOMES} == {*LIMITS, "negative or nan, a Python number"}


@pytest.mark.parametrize("test", HELD_BY)
def test_edge_cases_are_held_by_tests_that_exist(test):
    if test != "held by":
        sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
        assert re.search(rf"^def {test}\(", sources, re.MULTILINE)


def test_edge_cases_at_zero_the_derivative_of_a_clip_is_one():
    for method in METHODS:
        tx = METHODS[method](1.0)
        slope = jax.grad(lambda g, tx=tx: jnp.sum(tx.update(g, tx.init(g))[0]))(jnp.zeros((1, 1)))
        np.testing.assert_array_equal(slope, [[1.0]])
