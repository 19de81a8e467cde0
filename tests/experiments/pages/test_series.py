import numpy as np

from experiments.pages.series import MOST, Figure, Series, fit_to_page, smooth, thin


def test_smoothing_is_the_mean_of_the_latest():
    values = np.arange(10.0)
    np.testing.assert_allclose(smooth(values, 3), [0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8])
    np.testing.assert_allclose(smooth(values[:2], 100), [0, 0.5])
    np.testing.assert_allclose(smooth(np.array([1, np.nan, 3, 5]), 2), [1, 1, 3, 4])


def test_thinned_keeps_what_stands_out():
    steps = np.arange(100_000)
    y = np.random.default_rng(0).normal(size=len(steps))
    y[777], y[55_555], y[60_000:61_000] = 100.0, -100.0, np.nan
    short = thin(Series("norm", steps, y, low=y - 1, high=y + 1))
    assert len(short.y) <= MOST and np.all(np.diff(short.x) > 0)
    assert {777, 55_555} <= set(short.x.tolist())
    np.testing.assert_array_equal(short.y, y[short.x])
    assert short.low is not None
    np.testing.assert_array_equal(short.low, y[short.x] - 1)
    assert np.isnan(short.y).sum() >= 9  # the gap stays one


def test_fitted_says_that_it_thinned():
    y = np.arange(6000.0)
    whole = Figure("norm", "", "", "", [Series("norm", y, y)], caption="One seed.")
    thinner = fit_to_page(whole)
    assert thinner.caption.startswith("One seed. Of more than 2000 points")
    assert fit_to_page(thinner) is thinner
    short = whole._replace(series=[Series("norm", y[:9], y[:9])])
    assert fit_to_page(short) is short
