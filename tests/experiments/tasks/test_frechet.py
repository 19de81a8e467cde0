import jax
import numpy as np
import pytest
from scipy import linalg

from experiments.tasks import frechet

RNG = np.random.default_rng(0)


def reference(one, other):
    first, second = np.cov(one.T), np.cov(other.T)
    root = linalg.sqrtm(first @ second)
    apart = np.sum((one.mean(0) - other.mean(0)) ** 2)
    return apart + np.trace(first + second - 2 * np.real(root))


def test_the_distance_is_that_of_scipy():
    one = RNG.normal(size=(300, 8)) @ RNG.normal(size=(8, 8))
    other = RNG.normal(size=(200, 8)) @ RNG.normal(size=(8, 8)) + 0.3
    np.testing.assert_allclose(
        jax.jit(frechet.distance)(one.astype("f"), other.astype("f")),
        reference(one, other),
        rtol=1e-4,
    )


def test_the_same_images_are_no_distance_apart_and_constant_ones_have_one():
    one = RNG.normal(size=(300, 8)).astype("f")
    assert abs(float(frechet.distance(one, one))) < 1e-4
    moved = frechet.distance(one, one + 2)
    np.testing.assert_allclose(moved, 8 * 4, rtol=1e-4)
    np.testing.assert_allclose(frechet.distance(0 * one, 0 * one + 1), 8, rtol=1e-5)


def test_the_judge_is_trained_once_and_also_within_a_trace(judged, tiny, monkeypatch, equal):
    @jax.jit
    @jax.vmap
    def traced(scale):
        return frechet.features(
            frechet.judge(), scale * (tiny.test.images[:4, ..., 0] / np.float32(255))
        )

    found = traced(np.ones(2, np.float32))
    assert found.shape == (2, 4, 32)
    first = frechet.judge()
    [kept] = (frechet.images.CACHE).glob("judge-*.npz")
    frechet.judge.cache_clear()
    monkeypatch.setattr("experiments.tasks.trained.fit", None)
    assert equal(frechet.judge(), first)
    whole = kept.read_bytes()
    kept.write_bytes(b"damaged")
    frechet.judge.cache_clear()
    with pytest.raises(ValueError, match="delete it, and the network is trained anew"):
        frechet.judge()
    kept.write_bytes(whole)


def test_halves_of_real_images_are_nearer_than_noise(judged, tiny):
    pictures = tiny.train.images[..., 0] / np.float32(255)
    noise = RNG.uniform(size=pictures.shape).astype("f")
    away = frechet.distance(*(frechet.features(frechet.judge(), x) for x in (pictures, noise)))
    assert 0 <= frechet.noise_floor(pictures) < away / 3
