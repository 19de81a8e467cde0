import errno
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import files
from experiments.errors import BadInput
from experiments.runs import folder as runs
from experiments.training.train import History, State

CONFIG = {"task": "mnist", "hidden": [128]}
ORIGIN = {"config": CONFIG, "versions": {"jax": "0.10.2", "python": "3.11.7"}}


@pytest.fixture
def run(tmp_path):
    with runs.create_run(tmp_path / "run", "name", CONFIG) as run:
        run.begin(0, files.versions())
        return run


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
    assert run.result() is None
    versions = json.loads((run.folder / "versions.json").read_text())
    assert versions["jax"] == jax.__version__
    assert {"python", "jaxclip", "flax", "optax", "device", "platform"} <= versions.keys()


def test_by_default_every_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = set()
    for _ in range(3):
        with runs.create_run(None, "mnist ../zclip(z=2.5)", CONFIG) as run:
            folders.add(run.folder)
    assert len(folders) == 3
    for folder in folders:
        assert folder.parent.name == "runs"
        assert "mnist-..-zclip-z=2.5" in folder.name


def test_what_is_in_a_folder_is_never_overwritten(run):
    with (
        pytest.raises(BadInput, match=r"holds something already.*--resume"),
        runs.create_run(run.folder, "name", {}),
    ):
        pass
    assert run.config == CONFIG


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(BadInput, match=r"cannot be written.*--out"),
            runs.create_run(folder, "name", CONFIG),
        ):
            pass


def test_a_second_process_is_told_before_either_has_written(tmp_path, monkeypatch):
    """The second one comes when the first has found the folder empty and not yet written."""
    write = files.write_json
    second = runs.create_run(tmp_path / "run", "name", {"task": "other"})

    def meanwhile(path, value):
        monkeypatch.setattr(files, "write_json", write)
        with pytest.raises(BadInput, match="another process is writing into"), second:
            pass
        write(path, value)

    monkeypatch.setattr(files, "write_json", meanwhile)
    with runs.create_run(tmp_path / "run", "name", CONFIG) as run:
        assert run.config == CONFIG


def test_what_a_killed_creation_leaves_is_no_hindrance(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "config.json.123.part").write_text("{")
    with runs.create_run(tmp_path, "name", CONFIG) as run:
        assert {path.name for path in run.folder.iterdir()} == {".lock", "config.json"}


def test_only_a_run_can_be_opened(run, tmp_path):
    assert runs.open_run(run.folder).config == CONFIG
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="is not the folder of a run"):
            runs.open_run(folder)
    (run.folder / "config.json").write_text('{"task": "mn')
    with pytest.raises(BadInput, match=r"config.json is damaged"):
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
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "epoch": 2, "lo\xff\n{"step": 3')
    run.cut(2)
    np.testing.assert_array_equal(run.metrics().loss, [1.0, 2.0])
    run.cut(0)
    assert (run.folder / "metrics.jsonl").read_text() == ""
    with pytest.raises(BadInput, match="has 0 steps, and the checkpoint 5"):
        run.cut(5)


def test_a_state_comes_back_bit_for_bit_from_the_latest_checkpoint(run, equal):
    like = jax.eval_shape(lambda: state(1))
    assert run.restore(like, ORIGIN, epochs=3) is None
    for epoch in (1, 2, 3):
        run.save(state(epoch), ORIGIN)
    restored = run.restore(like, ORIGIN, epochs=3)
    assert jax.tree.structure(restored) == jax.tree.structure(state(3))
    assert equal(restored, state(3))
    kept = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert kept == {"2", "2.json", "3", "3.json"}


def test_a_full_disk_is_told_before_anything_is_written(run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000 << 10))
    with pytest.raises(BadInput, match=r"1000 KiB left.*--resume"):
        run.save(state(1), ORIGIN)
    assert not (run.folder / "checkpoints").exists()


def test_half_a_checkpoint_does_not_count(run, equal):
    run.save(state(1), ORIGIN)
    half = run.folder / "checkpoints" / "2.orbax-checkpoint-tmp"
    (half / "default").mkdir(parents=True)
    (half / "default" / "manifest.ocdbt").write_bytes(b"half")
    assert equal(run.restore(jax.eval_shape(lambda: state(1)), ORIGIN, epochs=2), state(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of two epochs with a checkpoint of each."""
    with runs.create_run(tmp_path_factory.mktemp("saved") / "run", "name", CONFIG) as run:
        run.begin(0, files.versions())
        for epoch in (1, 2):
            run.append(epoch, history([1.0, 2.0]))
            run.save(state(epoch), ORIGIN)
    return run.folder


@pytest.fixture
def copied(saved, tmp_path):
    return runs.Run(shutil.copytree(saved, tmp_path / "run"))


def flipped(path, position):
    content = bytearray(path.read_bytes())
    content[position * (len(content) - 1) // 4] ^= 4
    path.write_bytes(content)


def replaced_by_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    **{f"flip {n}": functools.partial(flipped, position=n) for n in range(5)},
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "folder": replaced_by_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(saved, tmp_path, equal, damage):
    like = jax.eval_shape(lambda: state(1))
    latest = saved / "checkpoints" / "2"
    paths = [path for path in latest.rglob("*") if path.is_file()] + [latest.with_suffix(".json")]
    assert len(paths) > 10
    for number, path in enumerate(paths):
        run = runs.Run(shutil.copytree(saved, tmp_path / str(number)))
        DAMAGES[damage](run.folder / path.relative_to(saved))
        told = []
        found = run.restore(like, ORIGIN, epochs=2, tell=told.append)
        assert equal(found, state(1)), path
        assert len(told) == 1
        assert "checkpoint of epoch 2 is damaged" in told[0]
        assert "\n" not in told[0]
    run.save(state(2), ORIGIN)
    assert equal(run.restore(like, ORIGIN, epochs=2, tell=refuse), state(2))


def test_without_an_intact_checkpoint_there_is_none(copied):
    for path in (copied.folder / "checkpoints").glob("*.json"):
        path.write_text("{}")
    told = []
    assert copied.restore(jax.eval_shape(lambda: state(1)), ORIGIN, 2, told.append) is None
    assert len(told) == 2
    assert "2.json is damaged (" in told[0]


def test_a_checkpoint_of_another_shape_or_type_is_damaged(copied):
    for params in (jnp.zeros((2, 3), jnp.int32), jnp.zeros((3, 2))):
        like = state(1)._replace(params={"layers": {0: {"kernel": params}}})
        with pytest.raises(BadInput, match="no such checkpoint") as told:
            copied.restore(jax.eval_shape(lambda like=like: like), ORIGIN, 2, tell=refuse)
        assert "is damaged" in str(told.value)


def refuse(line):
    raise BadInput(f"no such checkpoint: {line}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"versions": {**ORIGIN["versions"], "jax": "0.9"}}, "jax 0.10.2 there, 0.9 here"),
        ({"config": {**CONFIG, "hidden": [64]}}, r"hidden \[128\] there, \[64\] here"),
        ({"data_sha256": "0" * 64}, "data_sha256 differs"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(copied, change, message):
    with pytest.raises(BadInput, match=f"comes from another training .{message}.*start a new run"):
        copied.restore(jax.eval_shape(lambda: state(1)), {**ORIGIN, **change}, epochs=2)


def test_a_checkpoint_of_a_later_epoch_than_asked_for_is_refused(copied):
    with pytest.raises(BadInput, match="checkpoint of epoch 2, and the run has 1 epochs"):
        copied.restore(jax.eval_shape(lambda: state(1)), ORIGIN, epochs=1)


def test_checkpoints_need_a_folder(copied):
    shutil.rmtree(copied.folder / "checkpoints")
    (copied.folder / "checkpoints").write_text("")
    with pytest.raises(BadInput, match=r"checkpoints cannot be read .Not a directory.*resume"):
        copied.restore(jax.eval_shape(lambda: state(1)), ORIGIN, epochs=2)


GOOD = '{"step": 1, "epoch": 1, "loss": 2.0, "norm": 4.0, "limit": 1.0, "clipped": 0.0, "score": 1}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.replace('"step": 1', '"step": 2'), "line 2 is step 2 of epoch 1, not step 1"),
        (GOOD.replace('"epoch": 1', '"epoch": 2'), "step 1 of epoch 2, not step 1 of epoch 1"),
        (GOOD.replace('"step": 1', '"step": true'), "line 2: step is True, not an integer"),
        (GOOD.replace("2.0", '"2"'), "line 2: loss is '2', not a finite number or null"),
        (GOOD.replace("2.0", "NaN"), "line 2: NaN is not JSON"),
        (GOOD.replace("2.0", "1e999"), "loss is inf"),
        (GOOD.replace("2.0", f"1{'0' * 400}"), "loss is 1000"),
        (GOOD.replace('"loss": 2.0, ', ""), "line 2: loss missing"),
        (GOOD.replace('"loss"', '"lost": 1, "loss"'), "line 2: 'lost' unknown"),
        (GOOD[:-9], "line 2: Unterminated"),
        ("[" * 100_000, "line 2: "),
        ("[1]", r"line 2: the value is \[1\], not an object"),
        ("", "line 2: Expecting value"),
        (b"\xff", "line 2: 'utf-8' codec"),
    ],
)
def test_damaged_metrics_are_one_line_and_nothing_is_cut(copied, line, message):
    path = copied.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1] = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    before = path.read_bytes()
    for read in (copied.metrics, functools.partial(copied.cut, 4)):
        with pytest.raises(
            BadInput, match=rf"metrics.jsonl is damaged \(.*{message}.*new run"
        ) as told:
            read()
        assert "\n" not in str(told.value)
    assert path.read_bytes() == before
    copied.cut(1)
    assert len(copied.lines()) == 1


def test_a_full_disk_names_the_metrics(run, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"metrics.jsonl cannot be written .No space left"):
        run.append(1, history([1.0]))


def test_the_parts_of_killed_writers_are_removed_under_the_lock(run):
    (run.folder / "figures").mkdir()
    (run.folder / "claimed").mkdir()
    (run.folder / "claimed" / ".lock").touch()
    for name in ("a.json.7.part", "figures/b.png.8.part", "film.part", "claimed/c.9.part"):
        (run.folder / name).touch()
    with run.lock():
        left = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*.part")}
    assert left == {"film.part", "claimed/c.9.part"}


def test_the_result_is_there_whole_or_not_at_all(run):
    run.finish({"accuracy": 0.5, "norm_max": float("nan")})
    assert run.result() == {"accuracy": 0.5, "norm_max": None}
    assert not list(run.folder.glob("*.part"))


def test_a_second_process_is_kept_out(run):
    code = f"""
import sys
from types import SimpleNamespace
from pathlib import Path
from experiments import files
from experiments.runs import folder as runs
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
    assert files.fingerprint(params) == files.fingerprint({"w": jnp.asarray(params["w"])})
    other = {"w": params["w"].copy()}
    other["w"][1] = np.nextafter(other["w"][1], np.float32(9))
    assert files.fingerprint(params) != files.fingerprint(other)


def test_a_name_becomes_a_part_of_a_path():
    assert files.slug("mnist ../a/b(c='$x')") == "mnist-..-a-b-c=-x"
    assert len(files.slug("x" * 500)) == 80
