import numpy as np
import PIL.Image
import pytest

from experiments import curves
from experiments.runs import Metrics


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
        assert picture.size == (1080, 1080)
        return {color for _, color in picture.convert("RGB").getcolors(1 << 24)}


RED, GREEN = (214, 39, 40), (44, 160, 44)


def test_the_picture_shows_the_clipped_steps(metrics, tmp_path):
    path = tmp_path / "curves.png"
    curves.draw(metrics, "mnist $x_ clip", path)
    assert {RED, GREEN} <= colors(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_what_is_not_finite_or_not_positive_can_be_drawn(metrics, tmp_path, bad):
    path = tmp_path / "curves.png"
    series = {name: np.full(300, bad) for name in ("loss", "norm", "limit")}
    curves.draw(metrics._replace(**series), "bad", path)
    assert GREEN in colors(path)


def test_smoothing_is_the_mean_of_the_latest():
    values = np.arange(10.0)
    np.testing.assert_allclose(curves.smoothed(values, 3), [0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8])
    np.testing.assert_allclose(curves.smoothed(values[:2], 100), [0, 0.5])
    np.testing.assert_allclose(curves.smoothed(np.array([1, np.nan, 3, 5]), 2), [1, 1, 3, 4])
