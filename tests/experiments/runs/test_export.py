import json
import os
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.errors import BadInput
from experiments.options.run import RunMnist
from experiments.runs import export, exported, run, serving
from experiments.runs.folder import Run
from experiments.runs.page import page


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A run of one epoch."""
    out = tmp_path_factory.mktemp("exported") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.tasks.images.load", lambda *arguments, **options: tiny)
        options = RunMnist(hidden=(64,), batch_size=40, epochs=1, learning_rate=0.3, out=out)
        run.run(options.job(), options.place())
    return out


def job(folder):
    return RunMnist(resume=folder).restore_options().job()


@pytest.mark.slow
def test_an_export_is_the_model_of_the_run(tiny, tiny_mnist, folder, capsys):
    assert main(["export", str(folder)]) == 0
    assert "batch of 32, ms" in capsys.readouterr().out
    records = json.loads((folder / "export.json").read_text())
    float32, bfloat16, int8 = (record["bytes"] for record in records)
    assert float32 > 1.8 * bfloat16 > 3.2 * int8
    task, params = job(folder).config.task, export.read_params(job(folder), Run(folder))
    expected = task.logits(params, tiny.test.images)
    for record in records:
        content = (folder / record["file"]).read_bytes()
        assert len(content) == record["bytes"]
        assert 0 < record["bytes"] - record["weight_bytes"] < 10_000
        model = jax.export.deserialize(bytearray(content))
        assert model.platforms == ("cpu", "cuda", "tpu")
        logits = np.concatenate(
            [model.call(tiny.test.images[:7]), model.call(tiny.test.images[7:])]
        )
        difference = np.max(np.abs(logits - expected))
        np.testing.assert_allclose(difference, record["largest_difference"], atol=1e-5)
        assert record["accuracy"] == np.mean(logits.argmax(1) == tiny.test.labels)
        assert record["milliseconds"].keys() == {"1", "32"}
        assert record["peak_mib"] >= record["runtime_mib"] > 0
    assert records[0]["largest_difference"] <= 1e-5 < records[2]["largest_difference"] < 0.5
    assert page(Run(folder)).tables[0] == exported.table(records)


def test_the_bytes_of_int8_are_packed(folder, tiny_mnist):
    params = export.read_params(job(folder), Run(folder))
    model, size = export.WEIGHTS["int8"](job(folder).config.task.logits, params)
    assert size == 784 * 64 + 64 * 10 + 4 * (64 + 10) + 4 * (64 + 10)
    assert len(export.serialize(model, np.zeros((1, 28, 28, 1), np.uint8))) < 1.2 * size


@pytest.mark.parametrize("damage", ["none", "damaged", "other task"])
def test_a_run_that_cannot_be_exported_is_one_line(folder, tiny_mnist, capsys, damage):
    here = Path("here")
    here.mkdir()
    config = json.loads((folder / "config.json").read_text())
    message = "here has no checkpoint: continue the run with --resume here"
    if damage == "damaged":
        (here / "checkpoints" / "1").mkdir(parents=True)
        (here / "checkpoints" / "1.json").write_text("{}")
        message = "the checkpoint of epoch 1 in here is damaged"
    if damage == "other task":
        config["task"] = "chess"
        message = "chess is not a task that can be exported, as here has it"
    (here / "config.json").write_text(json.dumps(config))
    assert main(["export", "here"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (here / "export.json").exists()


def test_a_model_that_cannot_be_run_says_why(tmp_path):
    (tmp_path / "model").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="cannot be run in a process of its own"):
        export.serve(tmp_path / "model", np.zeros((1, 28, 28, 1), np.uint8))


def test_another_model_is_not_taken_for_the_same():
    logits = np.array([[1.0, np.nan, 3.0]])
    assert export.largest_difference(logits, logits) == 0
    assert export.largest_difference(logits, logits + np.array([0, 0, 0.5])) == 0.5
    export.check_same("int8", 0.5, logits)
    export.check_same("float32", 1e-5, logits)
    for difference in (0.5, np.nan):
        with pytest.raises(BadInput, match="please report"):
            export.check_same("float32", difference, logits)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux keeps it there")
def test_the_peak_of_the_memory_is_no_less_than_what_is_used_now():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    used = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    assert 50 < used - 1 <= serving.peak_mib() < 20 * used


def test_the_time_of_a_batch_is_the_median(monkeypatch):
    clock = iter(np.cumsum([0, 0, 1, 0, 0, 9, 0, 0, 2, 0, 9]).tolist())
    monkeypatch.setattr(serving.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(serving, "ROUNDS", 3)
    monkeypatch.setattr(serving, "SECONDS", 1e9)
    assert serving.milliseconds(lambda batch: batch, np.zeros(1)) == 2000
