"""The pages about experiments: their code runs, and their claims are those of the results."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from experiments.studies import catalog

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def run(page, **names):
    """Runs the code of a page, and holds what it prints against the text that follows it."""
    space = dict(names)
    printed = ""
    for language, text in re.findall(r"```(python|text)\n(.*?)```", page.read_text(), re.DOTALL):
        if language == "text":
            assert printed == text
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, page, "exec"), space)
        printed = out.getvalue()
    return space


@pytest.mark.wide
@pytest.mark.slow
def test_the_private_training_of_its_page_trains():
    pytest.importorskip("dp_accounting")
    pytest.importorskip("jax_privacy")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run(DOCS / "private.md")


@pytest.mark.slow
def test_the_loops_of_the_page_train(tiny_mnist):
    history = run(DOCS / "experiments.md")["history"]
    assert history.score.shape == (24, 10)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (jaxclip.clip_by_quantile(0.9, initial=1.0), 0.1),
        (jaxclip.autoclip(90.0), 0.1),
        (jaxclip.autoclip(10.0), 0.9),
    ],
)
def test_the_clips_of_the_page_on_choosing_clip_as_often_as_it_says(clip, expected):
    @jax.jit
    def clip_rate(norms):
        def step(state, norm):
            _, state = clip.update(norm[None], state)
            return state, None

        state, _ = jax.lax.scan(step, clip.init(jnp.zeros(1)), norms)
        return jaxclip.metrics(state)["clip"].clip_rate

    norms = np.random.default_rng(0).lognormal(0.0, 0.5, 2000).astype(np.float32)
    np.testing.assert_allclose(clip_rate(norms), expected, atol=0.03)


@pytest.fixture(scope="module")
def choosing():
    return runpy.run_path(str(DOCS / "choosing.py"))


def test_the_page_on_choosing_is_that_of_the_records(choosing):
    assert choosing["page"]() == (DOCS / "choosing.md").read_text()


def test_every_piece_of_advice_names_an_arm_of_a_study(choosing):
    rows = [row for row in choosing["ROWS"] if row.study]
    assert len(rows) > 10
    for row in rows:
        arms = catalog.find(row.study).arms(True)
        [arm] = [arm for arm in arms if (arm.setting.name, arm.name) == (row.setting, row.arm)]
        assert arm.against


def test_advice_without_a_record_is_untested(choosing, tmp_path):
    text = choosing["page"](tmp_path)
    assert text.count("untested; `") == sum(bool(row.study) for row in choosing["ROWS"])
