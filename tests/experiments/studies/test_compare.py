import dataclasses
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
from experiments.studies import catalog, compare, knobs, page, study
from experiments.studies.settings import Setting
from experiments.studies.study import Study, best, p_value, p_values, verdict
from experiments.sweeps.grid import values
from tests.experiments.line import LINE, Line

ROOT = Path(__file__).parents[3]
SETTING = Setting("line", Line(), norm=1.0, batch_size=8)


def arms(full):
    """A clip of three limits, of which the smallest hardly moves, and none."""
    arm = knobs.make_arm("clip_by_global_norm", SETTING)
    grid = knobs.at_learning_rate(SETTING, values("limit", 1e-6, 0.3, 3.0))
    return [dataclasses.replace(arm, grid=grid), knobs.unclipped_arm(SETTING)]


STUDY = Study(
    name="lines",
    question="Which <limit>?",
    arms=arms,
    figures=lambda outcomes: [
        page.comparison_figure(best(outcomes), "best", "Best"),
        page.knob_figure(outcomes[:3], "limits", "Limits", "limit"),
        page.epoch_figure(best(outcomes), "epochs", "Epochs"),
    ],
    answer=verdict,
)


def compared(lines):
    return compare.compare(
        STUDY, arms(False), full=False, folder=lines / "out", folders={}, chunk=64, command=""
    )


@pytest.fixture
def lines(monkeypatch, tmp_path):
    """Puts a study of a line through points in the place of all studies."""
    monkeypatch.setattr(catalog, "find", lambda name: STUDY)
    monkeypatch.setattr(Line, "data", lambda self, folder: LINE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_study_ends_in_a_page_and_goes_on_where_it_stopped(lines, capsys, monkeypatch):
    assert main(["compare", "lines"]) == 0
    told = capsys.readouterr().out
    folder = lines / "runs/lines-quick"
    assert "trainings 12/12" in told
    assert "The page is runs/lines-quick/report.html" in told
    loaded = report.load(folder)
    assert [table.name for table in loaded.tables] == ["best", "all"]
    assert len(loaded.tables[1].rows) == 4
    assert loaded.details["command"] == "python -m experiments compare lines"
    assert "Which &lt;limit&gt;?" in (folder / "report.html").read_text()
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}

    # Killed after the first arm: only the second one is trained again, with the same numbers.
    before = (folder / "page.json").read_bytes()
    for path in (folder / "arms").glob("*no-clip*/trials-*.npz"):
        path.unlink()
    (folder / "page.json").unlink()
    assert main(["compare", "lines"]) == 0
    told = capsys.readouterr().out
    assert "trainings 9/12  line: clip_by_global_norm" in told.splitlines()[0]
    assert (folder / "page.json").read_bytes() == before


def test_the_numbers_of_the_page_are_those_of_the_histories(lines):
    outcomes = compared(lines)
    assert [outcome.point["limit"] for outcome in outcomes[:3]] == [1e-6, 0.3, 3.0]
    assert [len(outcome.scores) for outcome in outcomes] == [3] * 4
    history = np.load(next((lines / "out/arms/line-clip_by_global_norm").glob("trials-*.npz")))
    np.testing.assert_array_equal(
        np.concatenate([outcome.scores for outcome in outcomes[:3]]), history["score"][:, -1]
    )
    clipped, bare = best(outcomes)
    assert clipped.point["limit"] != 1e-6
    scores = bare.scores
    np.testing.assert_allclose(bare.mean, scores.mean())
    # The quantile of Student's t with two degrees of freedom, from a table.
    np.testing.assert_allclose(
        bare.half_width, 4.302653 * scores.std(ddof=1) / np.sqrt(3), rtol=1e-5
    )
    assert (outcomes[0].clip_rate, bare.clip_rate, bare.failed) == (1, 0, 0)
    assert p_value(clipped, outcomes[0]) < 0.05
    assert p_value(clipped, clipped) == 1


@pytest.mark.slow
def test_what_diverges_counts_as_worst(lines):
    outcomes = compared(lines)
    good = outcomes[2]
    nothing = np.full_like(good.history.score, np.nan)
    lost = good._replace(history=good.history._replace(score=nothing, validation=nothing))
    assert best([lost, good])[0].mean == good.mean
    assert cell(lost, "accuracy, %") is None
    assert p_value(good, lost) == 0


def cell(outcome, name):
    table = page.table("name", "title", [outcome])
    return table.rows[0][[column.title for column in table.columns].index(name)]


def test_a_point_is_chosen_by_what_was_held_out_and_told_by_the_test(lines):
    outcomes = compared(lines)
    one, other = outcomes[1:3]
    like = np.ones_like(one.history.score)
    one = one._replace(history=one.history._replace(score=0.5 * like, validation=0.8 * like))
    other = other._replace(history=other.history._replace(score=0.6 * like, validation=0.7 * like))
    assert best([other, one]) == [one]
    told = cell(one, "accuracy, %"), cell(one, "validation, %")
    np.testing.assert_allclose(told, (50, 80), rtol=1e-6)
    assert [cell(point, "edge of its grid") for point in outcomes] == ["edge", None, "edge", None]


def test_every_setting_has_its_turn(lines):
    one, two, three, other = compared(lines)
    elsewhere = dataclasses.replace(other.arm, setting=dataclasses.replace(SETTING, name="z"))
    other = other._replace(arm=elsewhere)
    assert page.interleave([one, two, three, other]) == [one, other, two, three]


def test_of_many_differences_fewer_count(lines, monkeypatch):
    outcomes = compared(lines)
    alone = iter([0.01, 0.04, 0.2, 0.6])
    monkeypatch.setattr(study, "p_value", lambda one, other: next(alone))
    # Benjamini & Hochberg: p times the number of tests over its rank.
    np.testing.assert_allclose(p_values(outcomes[0], outcomes), [0.04, 0.08, 0.8 / 3, 0.6])


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
    wanted = {"study": "lines", "full": True, "settings": ["line"], "versions": files.versions()}
    (folder / "study.json").write_text(json.dumps(wanted))
    assert main(["compare", "lines", "--out", "there"]) == 2
    assert "full True there, False here" in capsys.readouterr().err
    wanted |= {"full": False, "versions": {**wanted["versions"], "jax": "0.0.1"}}
    (folder / "study.json").write_text(json.dumps(wanted))
    assert main(["compare", "lines", "--out", "there"]) == 2
    assert "jax 0.0.1 there" in capsys.readouterr().err
    (folder / "study.json").unlink()
    (folder / "thesis.txt").write_text("kept")
    assert main(["compare", "lines", "--out", "there"]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_a_damaged_chunk_of_the_last_arm_is_told_before_the_first_is_trained(lines, capsys):
    last = lines / "there/arms" / knobs.unclipped_arm(SETTING).slug
    last.mkdir(parents=True)
    wanted = {"study": "lines", "full": False, "settings": ["line"], "versions": files.versions()}
    (lines / "there/study.json").write_text(json.dumps(wanted))
    (last / "trials-0.npz").write_bytes(b"PK")
    assert main(["compare", "lines", "--out", "there"]) == 2
    told = capsys.readouterr()
    assert "trials-0.npz is damaged" in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert len(list((lines / "there/arms").iterdir())) == 1


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
