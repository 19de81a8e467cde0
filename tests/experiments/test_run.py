import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import run, runs
from experiments.errors import BadInput
from experiments.options import RunMnist

OPTIONS = RunMnist(
    hidden=(8,), batch_size=40, epochs=4, learning_rate=0.1, limit="cosine:1.0:0.2", out=Path("run")
)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """An uninterrupted run: its folder and its result."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.data.load", lambda *arguments, **options: tiny)
        result = run.run(dataclasses.replace(OPTIONS, out=folder), "the command")
    return folder, result


def test_a_run_leaves_a_folder_that_tells_all(finished):
    folder, result = finished
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "result.json",
        "versions.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config == {**OPTIONS.spelled_out(), "command": "the command"}
    assert json.loads((folder / "result.json").read_text()) == result
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_is_what_the_metrics_say(finished):
    folder, result = finished
    metrics = runs.Run(folder).metrics()
    assert len(metrics.loss) == result["steps"] == 4 * 5
    assert result["accuracy"] == metrics.score[-1] > 0.5
    assert result["clip_rate"] == np.mean(metrics.clipped > 0) > 0
    assert result["norm_median"] == np.median(metrics.norm)
    assert result["norm_max"] == metrics.norm.max()
    np.testing.assert_array_equal(metrics.clipped, metrics.norm > metrics.limit)
    assert metrics.limit[0] == 1
    assert 0.2 < metrics.limit[-1] < 0.25


def test_a_run_that_stops_ends_as_if_it_had_not(tiny_mnist, monkeypatch, finished, capsys):
    """It stops at the end of epoch 3, when the metrics are written and the checkpoint is not."""
    save = runs.Run.save

    def stop(self, state):
        if state.epoch == 3:
            raise KeyboardInterrupt
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(OPTIONS)
    assert not Path("run/result.json").exists()
    capsys.readouterr()

    result = run.run(dataclasses.replace(OPTIONS, resume=Path("run")))
    assert capsys.readouterr().out.startswith("epoch 3/4")
    folder, uninterrupted = finished
    assert {**result, "seconds": 0} == {**uninterrupted, "seconds": 0}
    assert Path("run/metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


def test_a_training_that_diverges_says_so():
    result = {"accuracy": 0.098, "clip_rate": 0.0, "norm_median": None, "norm_max": None}
    assert "norm: median not finite, maximum not finite" in run.conclusion(result)


def test_a_run_that_has_ended_only_says_so_again(tiny_mnist, finished, monkeypatch, capsys):
    folder, result = finished
    monkeypatch.setattr(run, "epoch", None)
    assert run.run(dataclasses.replace(OPTIONS, resume=folder)) == result
    assert f"Accuracy: {100 * result['accuracy']:.2f} %" in capsys.readouterr().out


def test_a_run_is_not_resumed_as_another(tiny_mnist, finished):
    folder, _ = finished
    other = dataclasses.replace(OPTIONS, resume=folder, epochs=5, clip="clip_by_leaf_norm")
    with pytest.raises(BadInput) as told:
        run.run(other)
    assert "--epochs is 5 here and 4 there" in str(told.value)
    assert "--clip is clip_by_leaf_norm here and clip_by_global_norm there" in str(told.value)
    assert "seed" not in str(told.value)


def test_the_options_of_a_run_are_found_again(finished):
    folder, _ = finished
    elsewhere = RunMnist(resume=folder, mnist_dir=Path("digits"))
    assert run.resumed(elsewhere) == dataclasses.replace(
        OPTIONS, resume=folder, mnist_dir=Path("digits"), out=None
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"task": "mnist"}', "not of this version"),
        ("[]", "no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_config_of_another_version_is_told(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadInput, match=message):
        run.resumed(RunMnist(resume=tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunMnist(batch_size=201), "--batch-size is 201, and there are 200 examples"),
        (RunMnist(clip="adaptive_grad_clip(axes=7)"), "does not suit the model"),
    ],
)
def test_nothing_is_begun_that_cannot_work(tiny_mnist, options, message):
    with pytest.raises(BadInput, match=message):
        run.run(options)
    assert not list(Path().iterdir())


def test_a_platform_that_is_not_there_is_told():
    with pytest.raises(BadInput, match=r"--platform tpu.*no such device"):
        run.use("tpu")
