import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compression import quantization
from experiments.compression.quantization import Grid, Quantized
from experiments.errors import BadInput

RNG = np.random.default_rng(0)
PARAMS = {
    "kernel": RNG.standard_normal((30, 4)).astype(np.float32) * np.array([1, 10, 0.1, 0], "f"),
    "conv": RNG.standard_normal((3, 3, 2, 5)).astype(np.float32),
    "bias": RNG.standard_normal(4).astype(np.float32),
}


def reference(kernel, grid):
    """The equation of the docstring in double precision."""
    axes = tuple(range(kernel.ndim - 1)) if grid.per_channel else None
    most = 2 ** (grid.bits - 1) - 1
    scale = np.max(np.abs(kernel.astype(float)), axis=axes, keepdims=True) / (most + 0.5)
    scale = np.where(scale == 0, 1, scale)
    return scale * np.clip(np.round(kernel / scale), -most, most), scale


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_kernels_are_rounded_to_the_grid_and_all_else_stays(bits, per_channel):
    grid = Grid(bits, per_channel)
    found = quantization.rounded(PARAMS, grid)
    np.testing.assert_array_equal(found["bias"], PARAMS["bias"])
    for name in ("kernel", "conv"):
        expected, scale = reference(PARAMS[name], grid)
        halfway = np.abs(np.abs(PARAMS[name] / scale) % 1 - 0.5) < 1e-4
        assert np.mean(halfway) < 0.1
        agree = np.where(halfway, found[name], expected)
        np.testing.assert_allclose(found[name], agree, atol=1e-6 * np.max(scale))
        assert np.all(np.abs(found[name] - PARAMS[name]) <= scale * 0.5001)
        assert len(np.unique(np.round(found[name] / scale))) <= 2**bits - 1


def test_the_grid_is_symmetric():
    """Of two equal extremes, neither is rounded beyond itself."""
    extremes = {"kernel": np.array([[-1.0, 1.0]], np.float32)}
    for bits in range(2, 9):
        [[low, high]] = quantization.rounded(extremes, Grid(bits, per_channel=False))["kernel"]
        assert -low == high <= 1


def test_each_channel_has_a_scale_of_its_own():
    quantized = quantization.quantize(PARAMS, Grid(4))
    assert quantized["kernel"].scale.shape == (1, 4)
    assert quantized["conv"].scale.shape == (1, 1, 1, 5)
    assert quantization.quantize(PARAMS, Grid(4, per_channel=False))["conv"].scale.size == 1
    assert quantized["kernel"].qvalue.dtype == jnp.int8


def test_what_diverged_stays_so():
    for bad in (np.nan, np.inf):
        kernel = PARAMS["kernel"].copy()
        kernel[0, 0] = bad
        found = quantization.rounded({"kernel": kernel}, Grid(8))["kernel"]
        assert np.all(np.isnan(found[:, 0]))
        assert np.all(np.isfinite(found[:, 1:]))


def test_the_derivative_goes_straight_through_under_vmap():
    grid = Grid(3)

    def loss(kernel):
        params = quantization.straight_through({"kernel": kernel, "bias": PARAMS["bias"]}, grid)
        return jnp.sum(params["kernel"] ** 3)

    many = jnp.stack([PARAMS["kernel"], 2 * PARAMS["kernel"]])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(many)
    for kernel, value, slope in zip(many, values, slopes, strict=True):
        expected, _ = reference(np.asarray(kernel), grid)
        np.testing.assert_allclose(value, np.sum(expected**3), rtol=1e-3)
        np.testing.assert_allclose(slope, 3 * expected**2, rtol=1e-3, atol=1e-4)


def test_sizes_count_packed_codes_scales_and_the_rest():
    assert quantization.quantized_nbytes(PARAMS, Grid(8)) == 120 + 16 + 90 + 20 + 16
    assert quantization.quantized_nbytes(PARAMS, Grid(3, False)) == 45 + 4 + 34 + 4 + 16


@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_bits_that_there_are_not_are_refused(bits):
    with pytest.raises(BadInput, match="give 2 to 8"):
        quantization.quantize(PARAMS, Grid(bits))


@dataclasses.dataclass(frozen=True)
class Sum:
    """A task whose loss and score are the sum of the cubes of a kernel."""

    dataset = "cubes"

    def data(self, folder=None):
        return folder

    def init(self, key):
        return {"kernel": jax.random.normal(key, (5, 3))}

    def loss(self, params, batch):
        return jnp.sum(params["kernel"] ** 3) + batch

    def score(self, params, test):
        return jnp.sum(params["kernel"] ** 3) + test


def test_a_quantized_task_is_scored_with_rounded_weights_and_trained_with_them_where_asked():
    after, during = (Quantized(Sum(), Grid(3), in_training) for in_training in (False, True))
    params = after.init(jax.random.key(0))
    small = quantization.rounded(params, Grid(3))
    assert not np.array_equal(small["kernel"], params["kernel"])
    for task in (after, during):
        np.testing.assert_allclose(task.score(params, 1.0), Sum().score(small, 1.0), rtol=1e-5)
        assert (task.dataset, task.data("there")) == ("cubes", "there")
    np.testing.assert_allclose(after.loss(params, 2.0), Sum().loss(params, 2.0), rtol=1e-5)
    np.testing.assert_allclose(during.loss(params, 2.0), Sum().loss(small, 2.0), rtol=1e-4)
    slope = jax.grad(during.loss)(params, 0.0)["kernel"]
    np.testing.assert_allclose(slope, 3 * small["kernel"] ** 2, rtol=1e-4)
