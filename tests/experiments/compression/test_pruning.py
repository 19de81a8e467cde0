import jax
import numpy as np
import pytest

from experiments.compression.pruning import prune
from experiments.errors import BadInput

RNG = np.random.default_rng(0)
PARAMS = {
    # Twelve layers, whose names are in another order than their numbers.
    "layers": {i: {"kernel": RNG.standard_normal((4, 3)).astype("f") / (i + 1)} for i in range(12)},
    "bias": np.full(3, 1e-9, np.float32),
}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.98, 1.0])
def test_the_smallest_weights_of_all_kernels_become_zero(share):
    found = prune(PARAMS, share)
    np.testing.assert_array_equal(found["bias"], PARAMS["bias"])
    before = np.stack([layer["kernel"] for layer in PARAMS["layers"].values()])
    after = np.stack([layer["kernel"] for layer in found["layers"].values()])
    bound = np.sort(np.abs(before), axis=None)[: round(share * before.size)].max(initial=-1)
    np.testing.assert_array_equal(after, np.where(np.abs(before) <= bound, 0, before))


def test_of_weights_of_one_size_as_many_are_pruned_as_asked():
    """As a clip of weights leaves them; those that go are spread over the layers."""
    params = jax.tree.map(lambda x: np.sign(x) * 0.1, PARAMS)
    after = np.stack([layer["kernel"] for layer in prune(params, 0.5)["layers"].values()])
    assert np.sum(after == 0) == after.size // 2
    assert np.all(np.abs(np.mean(after == 0, axis=(1, 2)) - 0.5) < 0.5)


def test_trainings_side_by_side_are_pruned_as_alone():
    many = jax.tree.map(lambda x: np.stack([x, x[::-1]]), PARAMS)
    found = jax.jit(jax.vmap(lambda params: prune(params, 0.7)))(many)
    alone = prune(jax.tree.map(lambda x: x[1], many), 0.7)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y), found, alone)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_no_such_share_is_refused(share):
    with pytest.raises(BadInput, match="give 0 to 1"):
        prune(PARAMS, share)
