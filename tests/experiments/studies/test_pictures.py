import numpy as np

from experiments.studies.pictures import ACROSS, SIDE, mosaic


def test_pictures_stand_side_by_side_the_first_one_at_the_upper_left():
    pictures = np.zeros((ACROSS + 2, SIDE, SIDE))
    pictures[0, 0, :] = 1  # its upper edge
    pictures[ACROSS + 1] = np.nan
    figure = mosaic("them", "All of them", pictures)
    x, y, z = figure.heat
    assert figure.name == "pictures-them"
    assert (len(x), len(y), len(z)) == (ACROSS * SIDE, 2 * SIDE, 2 * SIDE)
    assert np.all(np.diff(y) > 0)
    top = np.asarray(z)[np.argmax(y)]
    np.testing.assert_array_equal(top, np.arange(ACROSS * SIDE) < SIDE)
    assert np.sum(z) == SIDE
