"""The pages of the studies of what is said about clips, from trainings of a few steps."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from experiments.pages import report
from experiments.studies import catalog, compare, records, verify
from experiments.studies import page as pages
from experiments.studies.arms import Design
from experiments.studies.search import search
from experiments.tasks.mnist import Mnist

TINY = Design(
    points=2, tuning_seeds=1, rounds=1, most_rounds=1, finalists=1, final_seeds=1,
    slice_points=1, slice_seeds=1, seeds=3,
)  # fmt: skip
WANTED = {
    "compression": ({"weights-mnist", "sizes-mnist"}, {"bits-per-tensor-mnist", "pruning-mnist"}),
    "quantized_training": (set(), {"bits-mnist"}),
    "distillation": ({"sizes"}, set()),
    "vae": ({"quality"}, {"pictures-vae-no-clip", "layers-vae-no-clip"}),
    "wgan": ({"quality"}, {"pictures-weight-clip-no-clip", "layers-weight-clip-global-norm"}),
    "depth": ({"norms"}, {"norms-tanh, plain with large weights"}),
}


def replayed(study, made, kept, details):
    """The page that follows from a record."""
    findings = search(made, TINY, verify.Lookup(kept, 8))
    return pages.page(study, findings, details)


@pytest.mark.wide
@pytest.mark.slow
@pytest.mark.parametrize("name", WANTED)
def test_a_study_ends_in_its_page(judged, monkeypatch, tmp_path, name):
    monkeypatch.setattr(compare, "keep_compilations", lambda: None)
    monkeypatch.setattr("experiments.tasks.wgan.JUDGED", 20)
    monkeypatch.setattr("experiments.studies.vae.SAMPLES", 20)
    monkeypatch.setattr("experiments.studies.distillation.TEACHER", Mnist((16,)))
    study = dataclasses.replace(catalog.find(name), quick=TINY)
    made = [
        dataclasses.replace(
            arm,
            setting=(here := dataclasses.replace(arm.setting, batch_size=20)),
            config=dataclasses.replace(arm.config, batch_size=here.batch_size),
        )
        for arm in study.arms(False)
    ]
    with jax.numpy_dtype_promotion("standard"):  # Optax' Adam promotes
        findings = compare.compare(
            study, made, full=False, folder=tmp_path / "out", folders={}, chunk=8, command="typed"
        )
    page = report.load(tmp_path / "out")
    tables, figures = WANTED[name]
    assert tables <= {table.name for table in page.tables}
    assert figures <= {figure.name for figure in page.figures}
    assert page.answer
    kept = records.read(tmp_path / "out")
    verify.check_page(replayed(study, made, kept, page.details), tmp_path / "out")
    assert {one.arm for one in kept} == {finding.arm.name for finding in findings}
    for one in kept:
        assert one.measures.keys() == study.measures.keys()
        assert not any(map(math.isinf, one.measures.values()))
    assert np.any([finding.chosen.mean > 0.1 for finding in findings]) or name in ("vae", "wgan")
