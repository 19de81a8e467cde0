import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments.runs.folder import Run
from experiments.tasks import frechet
from experiments.tasks import images as data
from experiments.training import parallel
from experiments.training.data import Data


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """Runs on one of the fake devices, for which less has to be compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            parallel, "make_mesh", lambda *of: Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
        )
        yield


@pytest.fixture(scope="session")
def tiny():
    """Two hundred images of ten patterns, which an MLP learns in a few steps."""
    labels = np.arange(250, dtype=np.uint8) % 10
    noise = np.random.default_rng(0).integers(0, 60, (250, 28, 28, 1), dtype=np.uint8)
    patterns = np.zeros((10, 28, 28, 1), np.uint8)
    for label in range(10):
        patterns[label, 2 * label : 2 * label + 4] = 180
    images = patterns[labels] + noise
    return Data(
        train=data.Images(images[:200], labels[:200]), test=data.Images(images[200:], labels[200:])
    )


@pytest.fixture
def tiny_mnist(tiny, monkeypatch, tmp_path):
    """Puts the tiny images in the place of MNIST, and the working directory in a new folder."""
    monkeypatch.setattr(data, "load", lambda *arguments, **options: tiny)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def judge_cache(tiny, tmp_path_factory):
    """A cache with a judge of pictures that has seen the tiny images alone."""
    cache = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *arguments, **options: tiny)
        patch.setattr(data, "CACHE", cache)
        frechet.judge.cache_clear()
        frechet.judge()
    return cache


@pytest.fixture
def judged(tiny_mnist, judge_cache, monkeypatch):
    """Puts that judge in the place of the one that has learned the digits."""
    monkeypatch.setattr(data, "CACHE", judge_cache)
    frechet.judge.cache_clear()
    yield
    frechet.judge.cache_clear()


@pytest.fixture(scope="session")
def equal():
    """Whether two trees are the same bit for bit."""

    def compare(one, other):
        same = jax.tree.map(lambda a, b: jnp.array_equal(a, b, equal_nan=True), one, other)
        return all(map(bool, jax.tree.leaves(same)))

    return compare


@pytest.fixture(scope="session")
def mnist_cache(tmp_path_factory):
    """A folder in which TFDS has prepared MNIST from the files of the repository."""
    cache = tmp_path_factory.mktemp("cache")
    data.load("mnist", cache=cache)
    return cache


@pytest.fixture(scope="session")
def mnist(mnist_cache):
    """The real digits."""
    return data.load("mnist", cache=mnist_cache)


@pytest.fixture
def interrupted(monkeypatch):
    """Stops the runs of a block before they save the checkpoint of epoch 3, as Ctrl-C would."""

    @contextlib.contextmanager
    def at_epoch_three():
        save = Run.save

        def stop(self, state, made_by):
            if state.epoch == 3:
                raise KeyboardInterrupt
            save(self, state, made_by)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "save", stop)
            yield

    return at_epoch_three
