import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import runs
from experiments.errors import BadInput
from experiments.train import History, State

CONFIG = {"task": "mnist", "hidden": [128]}


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "run", "name", CONFIG)


def history(losses, score=0.5):
    column = jnp.array(losses, jnp.float32)
    return History(
        column, 2 * column, jnp.ones_like(column), jnp.zeros_like(column), score, jnp.nan
    )


def state(epoch):
    params = {"layers": {0: {"kernel": jnp.linspace(0, 1, 6).reshape(2, 3) / 3 * epoch}}}
    return State(params, (jnp.int32(epoch), ()), jnp.int32(epoch))


def test_a_new_run_says_what_it_is_and_what_made_it(run):
    assert run.config == CONFIG
    assert run.result is None
    versions = json.loads((run.folder / "versions.json").read_text())
    assert versions["jax"] == jax.__version__
    assert {"python", "jaxclip", "flax", "optax", "device", "platform"} <= versions.keys()


def test_by_default_every_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {runs.create(None, "mnist zclip(z=2.5)", CONFIG).folder for _ in range(3)}
    assert len(folders) == 3
    for folder in folders:
        assert folder.parent.name == "runs"
        assert "mnist-zclip-z=2.5" in folder.name


def test_what_is_in_a_folder_is_never_overwritten(run):
    with pytest.raises(BadInput, match=r"holds something already.*--resume"):
        runs.create(run.folder, "name", {})
    assert run.config == CONFIG


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInput, match=r"cannot be written.*--out"):
            runs.create(folder, "name", CONFIG)


def test_only_a_run_can_be_opened(run, tmp_path):
    assert runs.open_run(run.folder).config == CONFIG
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="is not the folder of a run"):
            runs.open_run(folder)
    (run.folder / "config.json").write_text('{"task": "mn')
    with pytest.raises(BadInput, match="cannot be read"):
        _ = run.config


def test_the_metrics_are_a_line_a_step(run):
    run.append(1, history([0.1, 0.2], score=0.25))
    run.append(2, history([0.3, 0.4], score=0.75))
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2]
    assert {"loss", "norm", "limit", "clipped"} <= rows[0].keys()
    metrics = run.metrics()
    # JSON keeps every bit of a float32.
    np.testing.assert_array_equal(metrics.loss, np.float32([0.1, 0.2, 0.3, 0.4]).astype(float))
    np.testing.assert_array_equal(metrics.score, [0.25, 0.75])


def test_what_is_not_finite_is_null_and_the_file_stays_json(run):
    run.append(1, history([np.nan, np.inf, 1.0]))
    text = (run.folder / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    np.testing.assert_array_equal(run.metrics().loss, [np.nan, np.nan, 1.0])


def test_lines_beyond_the_checkpoint_are_cut(run):
    run.append(1, history([1.0, 2.0]))
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "epoch": 2, "lo')
    run.cut(2)
    np.testing.assert_array_equal(run.metrics().loss, [1.0, 2.0])
    run.cut(0)
    assert (run.folder / "metrics.jsonl").read_text() == ""
    with pytest.raises(BadInput, match="has 0 steps, and the checkpoint 5"):
        run.cut(5)


def test_a_state_comes_back_bit_for_bit_from_the_latest_checkpoint(run, equal):
    like = jax.eval_shape(lambda: state(1))
    assert run.restore(like) is None
    for epoch in (1, 2, 3):
        run.save(state(epoch))
    restored = run.restore(like)
    assert jax.tree.structure(restored) == jax.tree.structure(state(3))
    assert equal(restored, state(3))


def test_a_full_disk_is_told_before_anything_is_written(run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000 << 10))
    with pytest.raises(BadInput, match=r"1000 KiB left.*--resume"):
        run.save(state(1))
    assert not (run.folder / "checkpoints").exists()


def test_half_a_checkpoint_does_not_count(run, equal):
    run.save(state(1))
    half = run.folder / "checkpoints" / "2.orbax-checkpoint-tmp"
    (half / "default").mkdir(parents=True)
    (half / "default" / "manifest.ocdbt").write_bytes(b"half")
    assert equal(run.restore(jax.eval_shape(lambda: state(1))), state(1))


def test_the_result_is_there_whole_or_not_at_all(run):
    run.finish({"accuracy": 0.5, "norm_max": float("nan")})
    assert run.result == {"accuracy": 0.5, "norm_max": None}
    assert not list(run.folder.glob("*.part"))


def test_a_second_process_is_kept_out(run):
    code = f"""
import sys
from types import SimpleNamespace
from pathlib import Path
from experiments import runs
from experiments.errors import BadInput
try:
    with runs.Run(Path({str(run.folder)!r})).lock():
        pass
except BadInput as error:
    sys.exit(str(error))
"""

    def enter():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    with run.lock():
        assert "another process is writing into" in enter().stderr
    assert enter().returncode == 0


def test_the_fingerprint_sees_every_bit():
    params = {"w": np.arange(4, dtype=np.float32)}
    assert runs.fingerprint(params) == runs.fingerprint({"w": jnp.asarray(params["w"])})
    other = {"w": params["w"].copy()}
    other["w"][1] = np.nextafter(other["w"][1], np.float32(9))
    assert runs.fingerprint(params) != runs.fingerprint(other)


def test_a_name_becomes_a_part_of_a_path():
    assert runs.slug("mnist ../a/b(c='$x')") == "mnist-..-a-b-c=-x"
    assert len(runs.slug("x" * 500)) == 80
