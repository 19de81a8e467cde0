import dataclasses
import errno
import os

import jax
import numpy as np
import pytest

import jaxclip
from experiments import files
from experiments.errors import BadInput
from experiments.sweeps import grid, sweep
from experiments.sweeps.memory import peak
from experiments.tasks.images import Images
from experiments.tasks.mnist import Mnist
from experiments.training.config import Config
from experiments.training.data import Data
from tests.experiments.line import LINE, Line

CONFIG = Config(Line(), jaxclip.clip_by_global_norm, batch_size=8, epochs=2)
GRID = grid.product(grid.values("limit", 0.1, 1.0, 10.0), grid.values("seed", *range(6)))
TRIALS = grid.stack(GRID)


@pytest.fixture
def compilations(monkeypatch):
    """Counts the programs of a sweep that are compiled."""
    count = []
    compile = jax.stages.Lowered.compile

    def counted(self, *arguments, **options):
        count.append(self)
        return compile(self, *arguments, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted)
    return count


def test_a_killed_sweep_does_only_what_is_missing(tmp_path, equal, compilations):
    whole, told = tmp_path / "whole", []
    expected = sweep.sweep(CONFIG, TRIALS, LINE, whole, chunk=8, report=lambda *n: told.append(n))
    assert told == [(0, 18), (8, 18), (16, 18), (18, 18)]
    assert len(compilations) == 1
    assert expected.score.shape == (18, 2)

    def killed(done, total):
        if done == 8:
            raise KeyboardInterrupt

    part, told = tmp_path / "part", []
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(CONFIG, TRIALS, LINE, part, chunk=8, report=killed)
    resumed = sweep.sweep(CONFIG, TRIALS, LINE, part, chunk=8, report=lambda *n: told.append(n))
    assert told == [(8, 18), (16, 18), (18, 18)]
    assert equal(resumed, expected)
    assert len(compilations) == 3
    assert equal(sweep.sweep(CONFIG, TRIALS, LINE, part, chunk=8), expected)
    assert len(compilations) == 3


def test_the_trials_are_those_of_train_alone(tmp_path):
    histories = sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=18)
    for index in (0, 17):
        alone = jax.jit(lambda one: sweep.train.train(CONFIG, one, LINE))(
            jax.tree.map(lambda leaf, index=index: leaf[index], TRIALS)
        )
        np.testing.assert_allclose(histories.loss[index], alone.loss, rtol=1e-5, atol=1e-6)


def test_the_devices_do_not_talk_and_share_the_trials():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (sweep.AXIS,))
    program = (
        sweep.parallel_training(CONFIG, mesh)
        .lower(sweep.select_trials(TRIALS, 0, 24, mesh), LINE)
        .compile()
    )
    assert len(jax.devices()) == 8
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in program.as_text()


def test_a_second_sweep_on_the_folder_refuses(tmp_path):
    with files.lock(tmp_path), pytest.raises(BadInput, match="another process"):
        sweep.sweep(CONFIG, TRIALS, LINE, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"epochs": 1}, "program_sha256"), ({"clip": jaxclip.clip_by_leaf_norm}, "program_sha256")],
)
def test_another_sweep_in_the_folder_refuses(tmp_path, change, told):
    sweep.sweep(CONFIG, TRIALS, LINE, tmp_path)
    with pytest.raises(BadInput, match=told):
        sweep.sweep(dataclasses.replace(CONFIG, **change), TRIALS, LINE, tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("kept")
    with pytest.raises(BadInput, match="something else"):
        sweep.sweep(CONFIG, TRIALS, LINE, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "kept"


def test_a_disk_that_fills_up_loses_nothing_that_is_done(tmp_path, monkeypatch, equal):
    whole = sweep.sweep(CONFIG, TRIALS, LINE, tmp_path / "whole", chunk=8)
    kept = []

    def full(folder):
        if len(kept) == 2:  # what the sweep is, and its first chunk
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(BadInput, match=r"trials-8.npz cannot be written \(No space left"):
            sweep.sweep(CONFIG, TRIALS, LINE, tmp_path / "full", chunk=8)
    done = []
    rest = sweep.sweep(
        CONFIG, TRIALS, LINE, tmp_path / "full", chunk=8, report=lambda *told: done.append(told)
    )
    assert done[0] == (8, 18)
    assert equal(whole, rest)


@pytest.mark.parametrize("content", [b"", b"broken", b"PK\x03\x04 cut"])
def test_a_damaged_chunk_is_told_and_trained_again_once_it_is_deleted(tmp_path, equal, content):
    whole = sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=8)
    (tmp_path / "trials-8.npz").write_bytes(content)
    with pytest.raises(BadInput, match=r"trials-8.npz is damaged \(.*: delete it"):
        sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=8)
    (tmp_path / "trials-8.npz").unlink()
    assert equal(whole, sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=8))


def test_a_damaged_chunk_is_told_before_anything_is_trained(tmp_path, compilations):
    """The first chunk is missing, and the last one is damaged."""
    sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=8)
    (tmp_path / "trials-0.npz").unlink()
    (tmp_path / "trials-16.npz").write_bytes(b"")
    before = len(compilations)
    with pytest.raises(BadInput, match=r"trials-16.npz is damaged"):
        sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=8)
    assert len(compilations) == before
    assert not (tmp_path / "trials-0.npz").exists()


def without_score(arrays):
    return {name: array for name, array in arrays.items() if name != "score"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_score, "it holds .*, not loss, norm, limit, clipped, score, validation"),
        (lambda arrays: {**arrays, "more": arrays["loss"]}, "it holds"),
        (lambda arrays: {**arrays, "loss": arrays["loss"][:5]}, r"loss is float32\(5, 2, 5\), not"),
        (lambda arrays: {**arrays, "loss": arrays["loss"].astype(float)}, "loss is float64"),
        (lambda arrays: {**arrays, "score": arrays["loss"]}, r"score is .* not float32\(8, 2\)"),
    ],
)
def test_a_chunk_of_other_arrays_is_told(tmp_path, change, message):
    sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=8)
    path = tmp_path / "trials-8.npz"
    files.write_arrays(path, change(files.read_arrays(path, "")))
    with pytest.raises(BadInput, match=rf"trials-8.npz is damaged \({message}.*delete it"):
        sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=8)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_damaged_description_is_told(tmp_path, content):
    sweep.sweep(CONFIG, TRIALS, LINE, tmp_path)
    (tmp_path / "sweep.json").write_text(content, encoding="latin-1")
    with pytest.raises(BadInput, match=r"sweep.json is damaged .*--out"):
        sweep.sweep(CONFIG, TRIALS, LINE, tmp_path)


def test_what_a_kill_leaves_at_the_very_start_is_no_hindrance(tmp_path):
    (tmp_path / "sweep.json.7.part").write_text("{")
    assert sweep.sweep(CONFIG, TRIALS, LINE, tmp_path).score.shape == (18, 2)


@pytest.mark.slow
def test_a_chunk_too_large_is_told_with_one_that_fits(tmp_path):
    shared, each = sweep.measure_memory(CONFIG, TRIALS, LINE)
    memory = 8 * (shared + 2 * each) + 4
    with pytest.raises(BadInput, match=r"a chunk of 24 trials .* give a chunk of 16 or less"):
        sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=24, memory=memory)
    with pytest.raises(BadInput, match="not even one"):
        sweep.sweep(CONFIG, TRIALS, LINE, tmp_path, chunk=24, memory=8 * shared)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_memory_of_a_chunk_is_predicted_within_a_quarter():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (sweep.AXIS,))
    config = Config(Mnist((16,)), jaxclip.clip_by_global_norm, epochs=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 28, 28, 1), dtype=np.uint8)
    data = Data(*[Images(images, np.zeros(1000, np.uint8))] * 2)
    shared, each = sweep.measure_memory(config, TRIALS, data)
    trials = sweep.resize_trials(TRIALS, 48)
    plan = sweep.parallel_training(config, mesh).lower(trials, data).compile().memory_analysis()
    planned = plan.temp_size_in_bytes + plan.output_size_in_bytes + plan.argument_size_in_bytes
    assert abs(shared + 48 * each - planned) < 0.25 * planned
    rough = peak(jax.make_jaxpr(sweep.batch_training(config))(trials, data).jaxpr)
    assert planned / sweep.FAR_OFF < rough < planned * sweep.FAR_OFF
