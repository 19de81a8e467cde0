import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.__main__ import main
from experiments.errors import BadInput
from experiments.runs import folder as runs
from experiments.runs import trackers
from experiments.training.train import History

ROWS = [{"loss": 2.5, "norm": 1.0}, {"loss": math.nan, "norm": math.inf}, {"loss": 0.1, "norm": 3}]


def curve(folder, name):
    """What TensorBoard itself reads in a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def history(steps, score=0.5):
    column = np.arange(steps, dtype=np.float32)
    return History(
        column, column + 1, np.full(steps, np.inf, np.float32), column > 1, score, np.nan
    )


class Recorder:
    """A tracker that remembers what it was told."""

    def __init__(self, fails=False):
        self.logged, self.closed, self.fails = [], 0, fails

    def log(self, step, values):
        self.logged.append((step, dict(values)))

    def close(self):
        self.closed += 1
        if self.fails:
            raise OSError("disk full")


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of Weights & Biases that remembers its calls."""
    calls = []

    def call(name):
        return lambda *positional, **named: calls.append((name, positional, named))

    class Error(Exception):
        pass

    def init(**options):
        call("init")(**options)
        if options["project"] == "refused":
            raise Error("no API key")
        return SimpleNamespace(log=call("log"), finish=call("finish"))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=Error))
    return calls


def test_tensorboard_reads_what_was_logged(tmp_path):
    tracker = trackers.TensorBoard(tmp_path)
    for step, row in enumerate(ROWS):
        tracker.log(step, row)
    tracker.close()
    tracker.close()
    assert len(list(tmp_path.iterdir())) == 1
    for name in ("loss", "norm"):
        steps, values = zip(*curve(tmp_path, name), strict=True)
        assert steps == (0, 1, 2)
        np.testing.assert_array_equal(values, np.float32([row[name] for row in ROWS]))


def test_tensorboard_has_every_step_of_a_resumed_run_once(tmp_path):
    first = trackers.TensorBoard(tmp_path)
    for step in range(5):
        first.log(step, {"loss": 1.0})
    first.close()
    second = trackers.TensorBoard(tmp_path, first=3)
    for step in range(3, 6):
        second.log(step, {"loss": 2.0})
    second.close()
    assert curve(tmp_path, "loss") == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_weights_and_biases_is_told_all(tmp_path, wandb):
    tracker = trackers.WeightsAndBiases("clips", "mnist", {"seed": 1}, tmp_path)
    tracker.log(7, {"loss": math.nan})
    tracker.close()
    options = {"project": "clips", "name": "mnist", "config": {"seed": 1}, "dir": str(tmp_path)}
    assert wandb[0] == ("init", (), options)
    [(name, [values], named)] = wandb[1:2]
    assert name == "log" and named == {"step": 7}
    assert values.keys() == {"loss"} and math.isnan(values["loss"])
    assert wandb[2:] == [("finish", (), {})]


def test_weights_and_biases_that_does_not_start_says_what_to_do(tmp_path, wandb):
    with pytest.raises(BadInput, match=r"no API key; log in by `wandb login`, or set WANDB_MODE"):
        trackers.WeightsAndBiases("refused", "mnist", {}, tmp_path)


def test_weights_and_biases_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match="Weights & Biases is not installed here: pip install wandb"):
        trackers.WeightsAndBiases("clips", "mnist", {}, tmp_path)


def test_a_folder_that_weights_and_biases_left_behind_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(BadInput, match="pip install wandb"):
        trackers.WeightsAndBiases("clips", "mnist", {}, tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_several_trackers_are_one():
    one, two = Recorder(), Recorder()
    several = trackers.Several([one, two])
    trackers.log_epoch(several, 2, history(3))
    several.close()
    assert one.logged == two.logged
    assert [step for step, _ in one.logged] == [3, 4, 5]
    assert [set(values) for _, values in one.logged] == [set(runs.SERIES)] * 2 + [
        {*runs.SERIES, "score"}
    ]
    assert (one.closed, two.closed) == (1, 1)


def test_a_tracker_that_fails_to_close_keeps_no_other_from_it():
    trackers_there = [Recorder(), Recorder(fails=True), Recorder()]
    with pytest.raises(OSError, match="disk full"):
        trackers.Several(trackers_there).close()
    assert [one.closed for one in trackers_there] == [1, 1, 1]


def test_without_trackers_nothing_is_kept():
    nothing = trackers.Several()
    nothing.log(0, {"loss": 1.0})
    nothing.close()
    assert nothing.trackers == ()


def test_a_run_keeps_event_files_that_tensorboard_reads(tiny_mnist, tmp_path):
    arguments = ["run", "mnist", "--epochs", "2", "--out", "run", "--tensorboard"]
    assert main(arguments) == 0
    kept = runs.Run(tmp_path / "run").metrics()
    steps, losses = zip(*curve(tmp_path / "run/tensorboard", "loss"), strict=True)
    assert steps == tuple(range(len(kept.loss)))
    np.testing.assert_allclose(losses, kept.loss, rtol=1e-6)
    assert [value for _, value in curve(tmp_path / "run/tensorboard", "score")] == pytest.approx(
        kept.score
    )


def test_a_run_that_weights_and_biases_cannot_follow_ends_in_one_line(
    tiny_mnist, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["run", "mnist", "--epochs", "1", "--wandb", "clips"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
