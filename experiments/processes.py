"""Processes joined by `jax.distributed`, all of them running the same command.

The first one reads and writes the files; what it finds there, the others are told. One process
alone is the first one, and nothing is sent.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding


def is_first() -> bool:
    """Returns whether this is the process that reads and writes."""
    return jax.process_index() == 0


def told_by_first(tree: Any) -> Any:
    """Returns the arrays that the first process has; all must give arrays of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree)


def gathered(tree: Any) -> Any:
    """Returns arrays that lie over the devices of all processes as whole arrays of the host."""
    return multihost_utils.process_allgather(tree, tiled=True)


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """Returns arrays of the host, which every process has whole, laid over the devices of all."""

    def place(leaf: Any) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree)
