"""Shrinks: their formulas where they act, and the one table of edge cases for all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import shrinks

FORMULAS = {
    "hard": (shrinks.hard, lambda n, t: np.minimum(1, t / n)),
    "torch": (partial(shrinks.hard, eps=1e-6), lambda n, t: np.minimum(1, t / (n + 1e-6))),
    "smooth": (shrinks.smooth, lambda n, t: t / (n + t)),
    "inverse_sqrt": (shrinks.inverse_sqrt, lambda n, t: 1 / np.sqrt(1 + (n / t) ** 2)),
    "tanh": (shrinks.tanh, lambda n, t: t * np.tanh(n / t) / n),
    "normalize": (shrinks.normalize, lambda n, t: t / n),
    "auto-s": (partial(shrinks.normalize, eps=1e-2), lambda n, t: t / (n + 1e-2)),
    "psac": (shrinks.psac, lambda n, t: t / (n + 0.1 / (n + 0.1))),
    "band": (partial(shrinks.band, low=0.5), lambda n, t: np.clip(n, 0.5 * t, t) / n),
    "drop": (shrinks.drop, lambda n, t: (n <= t).astype(np.float64)),
}
SHRINK = pytest.mark.parametrize(("shrink", "formula"), FORMULAS.values(), ids=FORMULAS.keys())


@SHRINK
def test_shrinks_are_their_formulas(shrink, formula):
    norm, limit = np.meshgrid(np.geomspace(1e-3, 1e3, 13), np.geomspace(1e-2, 1e2, 9))
    factor = shrink(jnp.asarray(norm, jnp.float32), jnp.asarray(limit, jnp.float32))
    np.testing.assert_allclose(factor, formula(norm, limit), rtol=2e-6)


@SHRINK
def test_shrinks_share_their_edges(shrink, formula):
    def factor(norm, limit):
        return float(shrink(jnp.array(norm), jnp.array(limit)))

    assert factor(0.0, 0.0) == 1
    assert factor(0.0, 1.0) == 1
    assert factor(0.0, np.inf) == 1
    assert factor(5.0, 0.0) == 0
    assert factor(5.0, np.inf) == 1
    slope = jax.grad(lambda norm: shrink(norm, jnp.array(1.0)))
    assert all(np.isfinite(slope(jnp.array(norm))) for norm in (0.0, 1e-15, 0.5, 1.0, 1e30))
