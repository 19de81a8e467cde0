import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.options.run import RunMnist
from experiments.tasks import images as data

ROOT = Path(__file__).parents[2]
RUN = ["run", "mnist"]


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main([*RUN, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for field in dataclasses.fields(RunMnist):
        assert re.search(rf"--{field.name.replace('_', '-')}[ ,]", told)
    for part in ("cosine:1.0:0.1", "{sgd,momentum,adam,adamw}", "0.01)", "10)"):
        assert part in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of {run, compare, claims, verify, list, pilot, export, report}"),
        (["run"], "Expected one of {mnist, mnist-private}"),
        (["fly"], "Unrecognized options: fly"),
        (["run", "mist"], "Available subcommands: mnist"),
        ([*RUN, "--limt", "3"], "Perhaps you meant: --limit;"),
        ([*RUN, "--epochs", "many"], "--epochs: invalid literal"),
        ([*RUN, "--optimizer", "sdg"], "invalid choice 'sdg'"),
        ([*RUN, "--platform", "gpuu"], "invalid choice 'gpuu'"),
        ([*RUN, "--clip", "clip_by_globl_norm"], "did you mean clip_by_global_norm"),
        ([*RUN, "--clip", "clip_by_global_norm(od=2)"], "did you mean ord"),
        ([*RUN, "--limit", "-1"], "`limit` is -1.0"),
        ([*RUN, "--limit", "cosin:1:0.1"], "did you mean cosine"),
        ([*RUN, "--batch-size", "201"], "there are 200 examples"),
        ([*RUN, "--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["export", "nowhere"], "nowhere is not the folder of a run"),
        (["export", "nowhere", "--weights", "int4"], "invalid choice 'int4'"),
        ([*RUN, "--out", "file"], "file cannot be written"),
        ([*RUN, "--out", "file/below"], "file/below cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tiny_mnist, capsys, arguments, message):
    Path("file").write_text("kept")
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert [path.name for path in Path().iterdir()] == ["file"]
    assert Path("file").read_text() == "kept"


@pytest.mark.parametrize("damage", ["corrupted", "missing"])
def test_bad_files_are_one_line_and_status_2(tmp_path, capsys, damage):
    for name in data.CHECKSUMS["mnist"]:
        (tmp_path / name).write_bytes((data.IN_REPOSITORY["mnist"] / name).read_bytes())
    bad = tmp_path / data.TRAIN_LABELS
    bad.write_bytes(b"x") if damage == "corrupted" else bad.unlink()
    assert main([*RUN, "--mnist-dir", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert str(bad) in told
    assert data.CHECKSUMS["mnist"][data.TRAIN_LABELS] in told
    assert told.count("\n") == 1


def stop(*arguments, **options):
    raise KeyboardInterrupt


def test_a_stopped_run_is_told_the_command_that_continues_it(monkeypatch, tiny_mnist, capsys):
    """The command that is printed is carried out, and the run ends."""
    options = shlex.split(
        "--epochs 2 --hidden 8 --clip-last --out 'a run' --mnist-dir 'its digits'"
    )
    with monkeypatch.context() as patch:
        patch.setattr("experiments.runs.folder.Run.save", stop)
        assert main([*RUN, *options, "--platform", "cpu", "--tensorboard"]) == 130
    told = capsys.readouterr().err
    assert told.startswith("stopped; to continue: ")
    assert told.count("\n") == 1
    program, *again = shlex.split(told.removeprefix("stopped; to continue: "))
    assert program == sys.executable
    assert again == [
        "-m", "experiments", *RUN, "--platform", "cpu", "--mnist-dir", "its digits",
        "--tensorboard", "--resume", "a run",
    ]  # fmt: skip
    assert main(again[2:]) == 0
    assert "Kept in a run" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compare schedules --full", "pilot mnist", "run mnist"])
def test_what_was_stopped_before_it_wrote_is_told_to_be_typed_again(
    monkeypatch, tiny_mnist, capsys, command
):
    monkeypatch.setattr("jax.devices", stop)
    assert main(command.split()) == 130
    assert capsys.readouterr().err == (
        f"stopped; to continue: {shlex.quote(sys.executable)} -m experiments {command}\n"
    )


def test_resuming_takes_the_options_of_the_run(monkeypatch, tiny_mnist, capsys):
    taken = []
    monkeypatch.setattr(RunMnist, "carry_out", lambda self, command: taken.append(self))
    Path("run").mkdir()
    kept = RunMnist(epochs=3, hidden=(8, 8), limit="0.5")
    Path("run/config.json").write_text(json.dumps(kept.identity()))
    assert main([*RUN, "--resume", "run"]) == 0
    assert main([*RUN, "--resume", "run", "--epochs", "10"]) == 0
    resumed = dataclasses.replace(kept, resume=Path("run"))
    assert taken == [resumed, dataclasses.replace(resumed, epochs=10)]


@pytest.fixture
def command(mnist_cache, tmp_path):
    """Starts the command line in an empty folder, with what is prepared already."""

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "experiments", *RUN, *arguments],
            cwd=tmp_path,
            env={**os.environ, "JAXCLIP_CACHE": str(mnist_cache), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""
    return out


@pytest.mark.slow
def test_the_main_job_learns_the_digits(command, tmp_path):
    out = finish(command())
    last, kept = out.splitlines()[-2:]
    accuracy = float(last.removeprefix("Accuracy: ").split(" %")[0])
    assert 91 <= accuracy < 100
    assert "clip rate" in last
    [folder] = (tmp_path / "runs").iterdir()
    assert kept == f"Kept in {folder.relative_to(tmp_path)}"
    result = json.loads((folder / "result.json").read_text())
    assert f"{100 * result['accuracy']:.2f}" == f"{accuracy:.2f}"
    assert result["steps"] == 6000


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_ends_bit_for_bit_as_if_it_had_not(command, tmp_path):
    options = ["--epochs", "3", "--clip", "adaptive_grad_clip", "--optimizer", "momentum"]
    finish(command(*options, "--out", "whole"))

    process = command(*options, "--out", "killed")
    assert process.stdout.readline().startswith("epoch 1/3")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    assert not (tmp_path / "killed" / "result.json").exists()
    assert finish(command("--resume", "killed")).startswith("epoch 2/3")

    whole, killed = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")
    )
    assert {**killed, "seconds": 0} == {**whole, "seconds": 0}
    for name in ("metrics.jsonl", "config.json"):
        texts = [(tmp_path / run / name).read_text() for run in ("whole", "killed")]
        assert texts[0].replace("whole", "killed") == texts[1]
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1800))
