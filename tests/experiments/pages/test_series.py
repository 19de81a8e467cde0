import numpy as np

from experiments.pages.series import MOST, Figure, Series, fitted, smoothed, thinned


def test_smoothing_is_the_mean_of_the_latest():
    values = np.arange(10.0)
    np.testing.assert_allclose(smoothed(values, 3), [0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8])
    np.testing.assert_allclose(smoothed(values[:2], 100), [0, 0.5])
    np.testing.assert_allclose(smoothed(np.array([1, np.nan, 3, 5]), 2), [1, 1, 3, 4])


def test_thinned_keeps_what_stands_out():
    steps = np.arange(100_000)
    y = np.random.default_rng(0).normal(size=len(steps))
    y[777], y[55_555], y[60_000:61_000] = 100.0, -100.0, np.nan
    thin = thinned(Series("norm", steps, y, low=y - 1, high=y + 1))
    assert len(thin.y) <= MOST and np.all(np.diff(thin.x) > 0)
    assert {777, 55_555} <= set(thin.x.tolist())
    np.testing.assert_array_equal(thin.y, y[thin.x])
    assert thin.low is not None
    np.testing.assert_array_equal(thin.low, y[thin.x] - 1)
    assert np.isnan(thin.y).sum() >= 9  # the gap stays one


def test_fitted_says_that_it_thinned():
    y = np.arange(6000.0)
    whole = Figure("norm", "", "", "", [Series("norm", y, y)], caption="One seed.")
    thinner = fitted(whole)
    assert thinner.caption.startswith("One seed. Of more than 2000 points")
    assert fitted(thinner) is thinner
    short = whole._replace(series=[Series("norm", y[:9], y[:9])])
    assert fitted(short) is short
