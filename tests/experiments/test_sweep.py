"""Sweeps: each trial as it is alone, one compilation, and nothing computed twice."""

import functools

import jax
import numpy as np
import pytest

import jaxclip
from experiments import atomic, sweep, train
from experiments.config import Config, trial
from experiments.errors import BadInput
from tests.experiments.test_train import LINE, Line

calls = []


def counted(limit):
    """A clip that tells how often its code is traced."""
    calls.append(limit)
    return jaxclip.clip_by_global_norm(limit)


CONFIG = Config(Line(), counted, batch_size=8, epochs=2)
GRID = sweep.product(limit=[0.1, 1.0, 10.0], seed=range(7))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    told = []
    history = sweep.sweep(CONFIG, GRID, LINE, folder, 8, lambda *done: told.append(done))
    return folder, history, told


def test_grids_are_products_and_chains():
    assert sweep.size(GRID) == 21
    np.testing.assert_allclose(GRID.limit[:8], [0.1] * 7 + [1.0], rtol=1e-6)
    np.testing.assert_array_equal(GRID.seed[:8], [*range(7), 0])
    both = sweep.chain(GRID, trial(seed=99))
    assert sweep.size(both) == 22
    assert int(both.seed[-1]) == 99


def test_every_trial_is_what_it_is_alone(swept):
    _, history, told = swept
    assert told == [(8, 21), (16, 21), (21, 21)]
    alone = jax.jit(functools.partial(train.train, CONFIG))
    for k in (0, 9, 20):
        one = alone(jax.tree.map(lambda x, k=k: x[k], GRID), LINE)
        for swept_series, series in zip(history, one, strict=True):
            np.testing.assert_allclose(swept_series[k], series, rtol=1e-4, atol=1e-5)


def test_a_sweep_compiles_once_and_computes_what_is_missing(swept):
    folder, history, _ = swept
    (folder / "chunk-0001.npz").unlink()
    traced, written = len(calls), {p: p.stat().st_mtime_ns for p in folder.glob("chunk-*")}
    again = sweep.sweep(CONFIG, GRID, LINE, folder, 8)
    assert len(calls) == traced
    assert all(p.stat().st_mtime_ns == at for p, at in written.items())
    for one, other in zip(history, again, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_folder_is_of_one_sweep_and_of_one_process(swept):
    folder, _, _ = swept
    with pytest.raises(BadInput, match="another sweep"):
        sweep.sweep(CONFIG, sweep.product(seed=range(3)), LINE, folder, 8)
    with atomic.locked(folder), pytest.raises(BadInput, match="another process"):
        sweep.sweep(CONFIG, GRID, LINE, folder, 8)


def test_a_sweep_is_laid_over_all_devices():
    assert jax.device_count() == 8
    history = sweep.sweep(CONFIG, sweep.product(seed=range(3)), LINE)
    assert history.loss.shape == (3, 2, 5)
