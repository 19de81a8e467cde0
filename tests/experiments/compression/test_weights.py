import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.compression import weights

STATISTICS = jax.jit(weights.statistics)


def params(scale=1.0):
    rng = np.random.default_rng(0)
    return {
        "layers": [
            {"kernel": scale * rng.standard_normal((40, 5)), "bias": np.zeros(5)},
            {"kernel": scale * rng.laplace(size=(3, 3, 5, 2)) / 100, "bias": np.ones(2)},
        ],
        "step": np.zeros((2, 2), np.int32),
    }


def single(tree):
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype.kind == "f" else x, tree)


def test_kernels_are_the_floating_arrays_of_two_axes_or_more():
    found = weights.kernels(single(params()))
    assert list(found) == ["layers/0/kernel", "layers/1/kernel"]
    doubled = weights.map_kernels(lambda kernel: 2 * kernel, params())
    np.testing.assert_array_equal(
        doubled["layers"][0]["kernel"], 2 * params()["layers"][0]["kernel"]
    )
    np.testing.assert_array_equal(doubled["layers"][1]["bias"], 1)


def test_sizes_are_those_of_all_parameters():
    assert weights.count(single(params())) == 200 + 5 + 90 + 2 + 4
    assert weights.nbytes(single(params())) == 4 * (200 + 5 + 90 + 2 + 4)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e36])
def test_statistics_are_those_of_scipy_over_the_whole_range(scale):
    layers = [params(scale)["layers"][i]["kernel"].ravel() for i in range(2)]
    largest = max(np.max(np.abs(layer)) for layer in layers)
    expected = {
        "range": largest,
        "near_largest": np.mean(np.abs(np.concatenate(layers)) <= 1e-3 * largest),
        "near_rms": np.average(
            [np.mean(np.abs(x) <= 1e-2 * np.sqrt(np.mean(x**2))) for x in layers],
            weights=[200, 90],
        ),
        "kurtosis": np.average(
            [stats.kurtosis(x, fisher=False) for x in layers], weights=[200, 90]
        ),
    }
    assert 0 < expected["near_rms"] < expected["near_largest"] < 1
    found = STATISTICS(single(params(scale)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)


def test_weights_that_are_all_zero_are_all_near_zero():
    found = STATISTICS(jax.tree.map(jnp.zeros_like, single(params())))
    assert {name: float(x) for name, x in found.items()} == {
        "range": 0.0, "near_largest": 1.0, "near_rms": 1.0, "kurtosis": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_of_a_training_that_diverged_have_no_statistics(bad):
    broken = single(params())
    broken["layers"][1]["kernel"][0, 0, 0, 0] = bad
    found = STATISTICS(broken)
    assert not np.isfinite(found.pop("range"))
    assert all(np.isnan(x) for x in found.values())
