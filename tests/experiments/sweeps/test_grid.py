import doctest

import pytest

from experiments.errors import BadInput
from experiments.sweeps import grid


def test_the_worked_examples_give_what_they_say():
    failed, tried = doctest.testmod(grid)
    assert (failed, tried) == (0, 6)


def test_the_algebra_of_grids():
    a, b = grid.values("limit", 1, 2), grid.values("seed", 3, 4)
    assert grid.product(a, b) == [
        {"limit": 1, "seed": 3},
        {"limit": 1, "seed": 4},
        {"limit": 2, "seed": 3},
        {"limit": 2, "seed": 4},
    ]
    assert grid.zipped(a, b) == [{"limit": 1, "seed": 3}, {"limit": 2, "seed": 4}]
    assert grid.chain(a, b) == [{"limit": 1}, {"limit": 2}, {"seed": 3}, {"seed": 4}]
    with pytest.raises(ValueError, match="shorter"):
        grid.zipped(a, grid.values("seed", 3))
    with pytest.raises(BadInput, match="empty"):
        grid.stack([])
