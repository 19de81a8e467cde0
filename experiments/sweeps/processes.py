"""Processes joined by `jax.distributed`, all of them running the same command.

The first one reads and writes the files, and broadcasts what it reads. One process
alone is the first one, and nothing is sent.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from experiments.errors import BadInput


def join(coordinator: str | None, count: int, index: int) -> None:
    """Joins this process to the others, if there are any.

    Args:
        coordinator: HOST:PORT of the first process, or None where this one is alone.
        count: how many processes there are.
        index: the number of this one.

    Raises:
        BadInput: these do not belong together.
    """
    if coordinator is None and (count, index) == (1, 0):
        return
    if coordinator is None or not re.fullmatch(r".+:\d+", coordinator):
        raise BadInput(
            f"--coordinator is {coordinator}: {count} processes need HOST:PORT of the first one, "
            f"such as localhost:12345"
        )
    if not 0 <= index < count:
        raise BadInput(f"--process is {index} of {count}: give a number from 0 to {count - 1}")
    jax.distributed.initialize(coordinator, count, index)


def is_first() -> bool:
    """Returns whether this is the process that reads and writes."""
    return jax.process_index() == 0


def broadcast(tree: Any) -> Any:
    """Returns the arrays of the first process; all processes pass arrays of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree)


def gather(tree: Any) -> Any:
    """Returns arrays sharded over the devices of all processes as whole arrays of the host."""
    return multihost_utils.process_allgather(tree, tiled=True)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Returns arrays of the host, which every process has whole, sharded over all devices."""

    def place(leaf: Any) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree)
