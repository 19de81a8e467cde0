import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import files
from experiments.__main__ import main
from experiments.pages import report
from experiments.studies import catalog, compare, knobs, records
from experiments.studies.arms import Design
from experiments.studies.settings import Setting
from experiments.studies.study import Study
from tests.experiments.line import LINE, Line

ROOT = Path(__file__).parents[3]
SETTING = Setting("line", Line(), norm=1.0, batch_size=8, learning_rate=0.3, floor=-10.0)
SMALL = Design(
    points=4, tuning_seeds=1, rounds=1, most_rounds=1, finalists=2, final_seeds=1,
    slice_points=3, slice_seeds=1, seeds=3,
)  # fmt: skip


def arms(full):
    """A clip of the global norm, and none: one program."""
    clipped = knobs.make_arm("clip_by_global_norm", SETTING, "a <clip>")
    return [knobs.unclipped_arm(SETTING), clipped]


STUDY = Study(
    name="lines",
    question="Which <limit>?",
    arms=arms,
    measures={"first loss": lambda history: float(history.loss[0, 0])},
    quick=SMALL,
)


@pytest.fixture
def lines(monkeypatch, tmp_path):
    """Puts a study of a line through points in the place of all studies."""
    monkeypatch.setattr(catalog, "find", lambda name: STUDY)
    monkeypatch.setattr(compare, "keep_compilations", lambda: None)
    monkeypatch.setattr(
        Line, "data", lambda self, folder: LINE._replace(validation=LINE.test), raising=False
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_study_ends_in_a_record_and_a_page_and_goes_on_where_it_stopped(lines, capsys):
    assert main(["compare", "lines", "--chunk", "8"]) == 0
    told = capsys.readouterr().out
    folder = lines / "runs/lines-quick"
    assert "trainings 8/27  round 1, line: no clip" in told
    assert "The page is runs/lines-quick/report.html" in told
    assert "| arm | accuracy, % |" in told
    loaded = report.load(folder)
    names = ["effects-line", "widths-line", "points-line"]
    assert [table.name for table in loaded.tables] == names
    assert loaded.details["command"] == "python -m experiments compare lines --chunk 8"
    assert "Which &lt;limit&gt;?" in (folder / "report.html").read_text()
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}

    # Killed during the last stage: only that is trained again, with the same numbers.
    before = {name: (folder / name).read_bytes() for name in ("page.json", "trainings.csv")}
    [last] = (folder / "sweeps").glob("test-*/trials-0.npz")
    seconds = records.read(folder)[-1].seconds
    last.unlink()
    for name in before:
        (folder / name).unlink()
    assert main(["compare", "lines", "--chunk", "8"]) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[0] == "trainings 8/27  round 1, line: no clip"
    kept = [one._replace(seconds=0) for one in records.read(folder)]
    (folder / "trainings.csv").write_bytes(before["trainings.csv"])
    assert kept == [one._replace(seconds=0) for one in records.read(folder)]
    assert seconds > 0


@pytest.mark.slow
def test_the_lines_of_the_record_are_those_of_the_histories(lines):
    findings = compare.compare(
        STUDY, arms(False), full=False, folder=lines / "out", folders={}, chunk=64, command="typed"
    )
    kept = records.read(lines / "out")
    stages = [one.stage for one in kept]
    assert len(kept) == stages.count("round 1") + stages.count("finalists") + 6 + sum(
        stage.startswith("width") for stage in stages
    )
    [path] = (lines / "out/sweeps").glob("test-*/trials-0.npz")
    history = np.load(path)
    tests = [one for one in kept if one.stage == "test"]
    assert [one.seed for one in tests] == [0, 1, 2] * 2
    assert [one.arm for one in tests] == ["no clip"] * 3 + ["a <clip>"] * 3
    for name, column in (("test", "score"), ("validation", "validation")):
        got = np.float32([getattr(one, name) for one in tests])
        np.testing.assert_array_equal(got, history[column][:, -1])
    first = np.float32([one.measures["first loss"] for one in tests])
    np.testing.assert_array_equal(first, history["loss"][:, 0, 0])
    np.testing.assert_allclose([one.loss for one in tests], history["loss"][:, -1].mean(-1))
    assert [one.clip_rate > 0 for one in tests] == [False] * 3 + [True] * 3
    assert not any(one.failed for one in tests)
    assert list(findings[1].chosen.trainings) == tests[3:]
    config = json.loads((lines / "out/config.json").read_text())
    assert config["command"] == "typed"
    assert config["design"]["points"] == 4
    assert config["arms"]["line: a <clip>"]["against"] == "no clip"


def test_the_expected_number_of_trainings_is_that_of_a_search_without_edges():
    bare, clipped = arms(False)
    assert compare.count([bare], SMALL) == 4 + 2 + 3 + 3
    assert compare.count([bare, clipped], SMALL) == 2 * (4 + 2 + 3) + 3 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "schedulse"], "schedulse is not a study; did you mean schedules?"),
        (["compare", "methods", "--settings", "mnits"], "did you mean mnist?"),
        (["compare", "schedules", "--chunk", "0"], "the chunk is 0"),
        (["compare", "schedules", "--processes", "2"], "2 processes need HOST:PORT"),
        (["compare", "schedules", "--coordinator", "nowhere"], "--coordinator is nowhere"),
        (
            ["compare", "schedules", "--coordinator", "a:1", "--processes", "2", "--process", "5"],
            "--process is 5 of 2: give a number from 0 to 1",
        ),
        (["pilot", "mnsit"], "mnsit is not a task; did you mean mnist?"),
        (["pilot", "mnist", "--epochs", "0"], "--epochs is 0"),
        (["report", "nowhere"], "nowhere is not the folder of a study or of a run"),
    ],
)
def test_bad_input_is_one_line(tiny_mnist, capsys, arguments, message):
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_chunk_of_no_trainings_is_refused_before_anything_is_written(lines, capsys):
    assert main(["compare", "lines", "--chunk", "-3"]) == 2
    assert "the chunk is -3" in capsys.readouterr().err
    assert not (lines / "runs").exists()


def test_a_folder_of_another_study_or_version_is_refused(lines, capsys):
    folder = lines / "there"
    folder.mkdir()
    wanted = compare.describe(STUDY, arms(False), False, 64)
    (folder / "config.json").write_text(json.dumps({**wanted, "full": True}))
    assert main(["compare", "lines", "--out", "there"]) == 2
    assert "full True there, False here" in capsys.readouterr().err
    versions = {**wanted["versions"], "jax": "0.0.1"}
    (folder / "config.json").write_text(json.dumps({**wanted, "versions": versions}))
    assert main(["compare", "lines", "--out", "there"]) == 2
    assert "jax 0.0.1 there" in capsys.readouterr().err
    (folder / "config.json").unlink()
    (folder / "thesis.txt").write_text("kept")
    assert main(["compare", "lines", "--out", "there"]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_a_damaged_chunk_is_told_before_anything_is_trained(lines, capsys):
    last = lines / "there/sweeps/test-0-line-no-clip"
    last.mkdir(parents=True)
    wanted = compare.describe(STUDY, arms(False), False, 64)
    (lines / "there/config.json").write_text(json.dumps(wanted))
    (last / "trials-0.npz").write_bytes(b"PK")
    assert main(["compare", "lines", "--out", "there"]) == 2
    told = capsys.readouterr()
    assert "trials-0.npz is damaged" in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert len(list((lines / "there/sweeps").iterdir())) == 1


def test_a_second_process_is_refused(lines, capsys):
    (lines / "there").mkdir()
    with files.lock(lines / "there"):
        assert main(["compare", "lines", "--out", "there"]) == 2
    assert "another process is writing into there" in capsys.readouterr().err


BATCHED_QR = """
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from experiments.studies.compare import spread_over_cores

spread_over_cores()
def total(seed):
    return jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (50, 50)))[0].sum()

devices = len(jax.devices())
mesh = Mesh(jax.devices(), ("seeds",))
seeds = PartitionSpec("seeds")
totals = jax.jit(
    jax.shard_map(jax.vmap(total), mesh=mesh, in_specs=seeds, out_specs=seeds, check_vma=False)
)
for start in range(200):
    jax.block_until_ready(totals(start + jnp.arange(20 * devices)))
print(devices)
"""


@pytest.mark.slow
def test_every_core_is_a_device_and_none_waits_for_a_thread_of_the_others():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run(
        [sys.executable, "-c", BATCHED_QR],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,  # of seconds; it takes five
    )
    assert ended.stdout == f"{os.cpu_count()}\n", ended.stderr
