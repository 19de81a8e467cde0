import numpy as np
import PIL.Image
import pytest

from experiments import files
from experiments.__main__ import main
from experiments.pages import figures
from experiments.runs import folder as runs
from experiments.runs import page
from experiments.runs.folder import Metrics


@pytest.fixture
def metrics():
    steps = np.arange(300)
    norm = 1 + np.sin(steps / 10) ** 2
    return Metrics(
        loss=2 / (1 + steps / 50),
        norm=norm,
        limit=np.full(300, 1.5),
        clipped=(norm > 1.5).astype(float),
        score=np.array([0.5, 0.8, 0.9]),
    )


def colors(path):
    """The colors of a picture, which has to be one of the usual size."""
    with PIL.Image.open(path) as picture:
        assert picture.size == (1125, 1800)
        return {color for _, color in picture.convert("RGB").getcolors(1 << 24)}


def draw(metrics, path):
    drawn = page.make_figures(metrics)
    files.write(path, lambda file: figures.save(drawn, file, "png"))


BLUE, CLIPPED, LIMIT = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def test_the_picture_shows_the_clipped_steps(metrics, tmp_path):
    path = tmp_path / "curves.png"
    draw(metrics, path)
    assert {CLIPPED, LIMIT} <= colors(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_what_is_not_finite_or_not_positive_can_be_drawn(metrics, tmp_path, bad):
    path = tmp_path / "curves.png"
    series = {name: np.full(300, bad) for name in ("loss", "norm", "limit")}
    draw(metrics._replace(**series), path)
    assert BLUE in colors(path)


def test_a_run_without_an_epoch_has_no_page(tmp_path, capsys):
    with runs.create_run(tmp_path / "run", "name", {}) as run:
        run.begin(0, files.versions())
        run.cut(0)
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "has no finished epoch: continue it with --resume" in capsys.readouterr().err
