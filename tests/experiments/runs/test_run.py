import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.errors import BadInput, Stopped
from experiments.options.run import RunMnist
from experiments.runs import folder as runs
from experiments.runs import run
from experiments.training import parallel

OPTIONS = RunMnist(
    hidden=(8,), batch_size=40, epochs=4, learning_rate=0.1, limit="cosine:1.0:0.2", out=Path("run")
)


def trained(options, command=""):
    options.check()
    return run.run(options.job(), options.place(command))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """An uninterrupted run: its folder and its result."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.tasks.images.load", lambda *arguments, **options: tiny)
        result = trained(dataclasses.replace(OPTIONS, out=folder), "the command")
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
    assert config == {**OPTIONS.identity(), "command": "the command"}
    assert json.loads((folder / "result.json").read_text()) == result
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_is_what_the_metrics_say(finished):
    folder, result = finished
    metrics = runs.Run(folder).metrics()
    assert len(metrics.loss) == result["steps"] == 4 * 5
    assert result["accuracy"] == metrics.score[-1] > 0.3
    assert result["clip_rate"] == np.mean(metrics.clipped > 0) > 0
    assert result["norm_median"] == np.median(metrics.norm)
    assert result["norm_max"] == metrics.norm.max()
    np.testing.assert_array_equal(metrics.clipped, metrics.norm > metrics.limit)
    assert metrics.limit[0] == 1
    assert 0.2 < metrics.limit[-1] < 0.25


def test_a_run_that_stops_ends_as_if_it_had_not(tiny_mnist, interrupted, finished, capsys):
    """It stops at the end of epoch 3, when the metrics are written and the checkpoint is not."""
    with interrupted(), pytest.raises(Stopped) as stopped:
        trained(OPTIONS)
    assert shlex.split(str(stopped.value))[1:] == [
        "-m", "experiments", "run", "mnist", "--resume", "run",
    ]  # fmt: skip
    assert not Path("run/result.json").exists()
    capsys.readouterr()

    result = trained(dataclasses.replace(OPTIONS, resume=Path("run")))
    assert capsys.readouterr().out.startswith("epoch 3/4")
    folder, uninterrupted = finished
    assert {**result, "seconds": 0} == {**uninterrupted, "seconds": 0}
    assert Path("run/metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


def stopped_epochs(folder):
    result = json.loads((folder / "result.json").read_text())
    return result["stopped"], len(runs.Run(folder).metrics().score)


def test_a_run_stops_at_a_loss_and_says_why(tiny_mnist, finished, capsys):
    losses = runs.Run(finished[0]).epoch_losses()
    assert losses[1] < losses[0]
    trained(dataclasses.replace(OPTIONS, until_loss=losses[1]))
    reason = f"after epoch 2 of 4: the loss {losses[1]:.4g} is at most {losses[1]:g}"
    assert f"Stopped {reason}" in capsys.readouterr().out
    assert stopped_epochs(Path("run")) == (reason, 2)
    # The epochs that it has are those of the run that goes on.
    ahead = (finished[0] / "metrics.jsonl").read_text()
    assert ahead.startswith(Path("run/metrics.jsonl").read_text())


def test_a_run_that_waits_in_vain_stops_and_says_why(tiny_mnist, capsys):
    still = dataclasses.replace(OPTIONS, learning_rate=0.0, batch_size=200, epochs=9, patience=2)
    trained(still)
    reason, epochs = stopped_epochs(Path("run"))
    # The sum over a batch in another order may be a lower one by a bit, once or twice.
    assert epochs < 9
    assert reason.startswith(f"after epoch {epochs} of 9: no loss below ")
    assert reason.endswith("in 2 epochs")


def test_a_run_that_no_rule_stops_says_so(tiny_mnist, capsys):
    trained(dataclasses.replace(OPTIONS, until_loss=1e-9, patience=4))
    assert stopped_epochs(Path("run")) == ("after epoch 4 of 4: the last one", 4)


def test_a_killed_run_stops_where_it_would_have(tiny_mnist, finished, monkeypatch, capsys):
    """It is killed when its last checkpoint is written, and its result is not."""
    loss = runs.Run(finished[0]).epoch_losses()[1]
    options = dataclasses.replace(OPTIONS, until_loss=loss)
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "finish", interrupt)
        with pytest.raises(Stopped):
            trained(options)
    monkeypatch.setattr(parallel.Trainer, "epoch", None)
    result = trained(dataclasses.replace(options, resume=Path("run")))
    assert result["stopped"].startswith("after epoch 2 of 4")


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_a_training_that_diverges_says_so():
    result = {"accuracy": 0.098, "clip_rate": 0.0, "norm_median": None, "norm_max": None}
    assert "norm: median not finite, maximum not finite" in run.conclusion(result)


def test_a_run_that_has_ended_only_says_so_again(tiny_mnist, finished, monkeypatch, capsys):
    folder, result = finished
    monkeypatch.setattr(parallel.Trainer, "epoch", None)
    assert trained(dataclasses.replace(OPTIONS, resume=folder)) == result
    assert f"Accuracy: {100 * result['accuracy']:.2f} %" in capsys.readouterr().out


def test_a_run_is_not_resumed_as_another(tiny_mnist, finished):
    folder, _ = finished
    other = dataclasses.replace(OPTIONS, resume=folder, epochs=5, clip="clip_by_leaf_norm")
    with pytest.raises(BadInput) as told:
        trained(other)
    assert "--epochs is 5 here and 4 there" in str(told.value)
    assert "--clip is clip_by_leaf_norm here and clip_by_global_norm there" in str(told.value)
    assert "seed" not in str(told.value)


def test_the_options_of_a_run_are_found_again(finished):
    folder, _ = finished
    elsewhere = RunMnist(resume=folder, mnist_dir=Path("digits"))
    assert elsewhere.restore_options() == dataclasses.replace(
        OPTIONS, resume=folder, mnist_dir=Path("digits"), out=None
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": None}, "seed is None, not an integer"),
        ({"seed": 2**40}, "--seed is 1099511627776: give a number of 32 bits"),
        ({"epochs": 0}, "--epochs is 0: give 1 or more"),
        ({"epochs": "3"}, "epochs is '3', not an integer"),
        ({"hidden": [8, 8.5]}, r"hidden\[1\] is 8.5, not an integer"),
        ({"hidden": 8}, "hidden is 8, not a list"),
        ({"optimizer": "lion"}, "optimizer is 'lion', not one of 'sgd', 'momentum'"),
        ({"clip_last": 1}, "clip_last is 1, not true or false"),
        ({"clip": "clip_by_nothing"}, "clip_by_nothing is not a method of jaxclip"),
        ({"limit": "high"}, "--limit high is neither a number nor a schedule"),
        ({"learning_rate": True}, "learning_rate is True, not a finite number"),
        ({"dropout": 0.5}, "'dropout' unknown"),
        ({"until_loss": 0}, "--until-loss is 0: give a number above 0"),
        ({"patience": 0}, "--patience is 0: give 1 or more"),
        ({"patience": 1.5}, "patience is 1.5, not an integer or null"),
        ({"resume": "here"}, "'resume' unknown"),
        ({"task": "mnist-private"}, "is that of a run of mnist-private, not of mnist"),
        ({"task": "mnist", "seed": ...}, "seed missing"),
        ("[]", r"the value is \[\], not an object"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        (b"\xff", "codec"),
        (None, "not the folder of a run"),
    ],
)
def test_a_damaged_config_is_told_in_a_line(tmp_path, config, message):
    path = tmp_path / "config.json"
    if config is None:
        path.mkdir()
    elif isinstance(config, dict):
        kept = {**OPTIONS.identity(), "command": "c", **config}
        path.write_text(json.dumps({key: item for key, item in kept.items() if item is not ...}))
    else:
        path.write_bytes(config if isinstance(config, bytes) else config.encode())
    with pytest.raises(BadInput, match=message) as told:
        RunMnist(resume=tmp_path).restore_options()
    assert "\n" not in str(told.value)
    assert str(tmp_path) in str(told.value)


def damaged_result(folder):
    (folder / "result.json").write_text('{"accuracy": "good"}')


def damaged_metrics(folder):
    (folder / "result.json").unlink()
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 7', '"step": 70'))


def later_checkpoint(folder):
    (folder / "result.json").unlink()
    path = folder / "checkpoints"
    (path / "4").rename(path / "5")
    (path / "4.json").rename(path / "5.json")


def other_versions(folder):
    (folder / "result.json").unlink()
    for path in (folder / "checkpoints").glob("*.json"):
        path.write_text(path.read_text().replace(jax.__version__, "0.0.1"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_result, r"result.json is damaged .*delete it"),
        (damaged_metrics, r"metrics.jsonl is damaged .line 8 is step 70 of epoch 2, not step 7"),
        (later_checkpoint, "checkpoint of epoch 5, and the run has 4 epochs"),
        (other_versions, "comes from another training .jax 0.0.1 there"),
    ],
)
def test_damage_is_told_before_anything_is_trained(
    tiny_mnist, finished, monkeypatch, tmp_path, damage, message
):
    monkeypatch.setattr(parallel.Trainer, "epoch", None)
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    damage(folder)
    with pytest.raises(BadInput, match=message):
        trained(dataclasses.replace(OPTIONS, resume=folder))


def test_a_flipped_byte_in_the_last_checkpoint_changes_nothing(
    tiny_mnist, finished, tmp_path, capsys
):
    """The run continues from the checkpoint before, and ends with the same parameters."""
    whole, result = finished
    folder = shutil.copytree(whole, tmp_path / "copy")
    (folder / "result.json").unlink()
    [data] = (folder / "checkpoints" / "4" / "default" / "d").iterdir()
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    again = trained(dataclasses.replace(OPTIONS, resume=folder))
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("The checkpoint of epoch 4 is damaged (the SHA-256 of its files")
    assert told[1].startswith("epoch 4/4")
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_another_data_set_is_told(tiny, tiny_mnist, finished, monkeypatch, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    (folder / "result.json").unlink()
    other = tiny._replace(test=tiny.test._replace(labels=tiny.test.labels[::-1]))
    monkeypatch.setattr("experiments.tasks.images.load", lambda *arguments: other)
    with pytest.raises(BadInput, match=r"another training .data_sha256 differs"):
        trained(dataclasses.replace(OPTIONS, resume=folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunMnist(batch_size=201), "--batch-size is 201, and there are 200 examples"),
        (RunMnist(clip="adaptive_grad_clip(axes=7)"), "does not suit the model"),
    ],
)
def test_nothing_is_begun_that_cannot_work(tiny_mnist, options, message):
    with pytest.raises(BadInput, match=message):
        trained(options)
    assert not list(Path().iterdir())
