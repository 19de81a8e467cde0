"""The algebra of grids.

A grid is a sequence of trials, each a mapping from the arguments of `trial` to numbers.

Eight seeds of three limits:

>>> limits, seeds = values("limit", 0.1, 1.0, 10.0), values("seed", *range(8))
>>> len(product(limits, seeds))
24

A limit that falls to a tenth of its first value, for two first values:

>>> zipped(values("limit", 1.0, 3.0), values("last_limit", 0.1, 0.3))
[{'limit': 1.0, 'last_limit': 0.1}, {'limit': 3.0, 'last_limit': 0.3}]

A coarse grid, and a finer one at a larger learning rate:

>>> coarse = values("limit", 0.1, 10.0)
>>> fine = product(values("learning_rate", 0.3), values("limit", 0.3, 1.0))
>>> chain(coarse, fine)[-1]
{'learning_rate': 0.3, 'limit': 1.0}
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.errors import BadInput
from experiments.training.config import Trial, trial

Grid = Sequence[Mapping[str, Any]]


def values(name: str, *numbers: float) -> Grid:
    """Returns the grid in which one argument takes each of the numbers."""
    return [{name: number} for number in numbers]


def product(*grids: Grid) -> Grid:
    """Returns every combination of a trial of each grid; later grids win, and vary fastest."""
    return [merge(parts) for parts in itertools.product(*grids)]


def chain(*grids: Grid) -> Grid:
    """Returns the trials of all grids, one grid after the other."""
    return list(itertools.chain(*grids))


def zipped(*grids: Grid) -> Grid:
    """Returns the first trials of all grids as one, then the second ones; lengths must agree."""
    return [merge(parts) for parts in zip(*grids, strict=True)]


def merge(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns one trial with the arguments of all parts."""
    return dict(itertools.chain.from_iterable(part.items() for part in parts))


def stack(grid: Grid) -> Trial:
    """Returns the trials of a grid as one `Trial` of arrays."""
    if not grid:
        raise BadInput("the grid is empty: give at least one trial")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trial(**point) for point in grid))
