"""Sweeps: many trainings of one structure side by side, on all devices, kept chunk by chunk.

Grids are trials whose numbers are arrays. `product` makes every combination, `chain` puts grids one
after the other, and a trial of lists is what a `zip` would be:

    trials = product(limit=[0.1, 1.0, 10.0], seed=range(8))
    history = sweep(config, trials, data, folder=Path("runs/limits"))
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import atomic, train
from experiments.config import Config, Trial, trial
from experiments.data import Data
from experiments.errors import BadInput
from experiments.train import History


def product(**values: Iterable[float]) -> Trial:
    """Returns every combination of the values of a `Trial`, the last one changing fastest."""
    rows: Iterable[Any] = itertools.product(*values.values())
    return chain(*[trial(**dict(zip(values, row, strict=True))) for row in rows])


def chain(*grids: Trial) -> Trial:
    """Returns the trials of all grids, in their order; a single trial counts as a grid of one."""
    return jax.tree.map(lambda *parts: jnp.concatenate([jnp.atleast_1d(p) for p in parts]), *grids)


def size(trials: Trial) -> int:
    """Returns how many trials a grid has."""
    return len(trials.seed)


def sweep(
    config: Config,
    trials: Trial,
    data: Data,
    folder: Path | None = None,
    chunk: int = 64,
    report: Callable[[int, int], Any] = lambda done, trials: None,
) -> History:
    """Returns the history of every trial, each array with an axis of trials in front.

    Args:
        config: what all of them share; it is compiled once.
        trials: their numbers.
        data: the examples, copied to every device.
        folder: where each chunk is kept when it is done; a sweep that is started again computes
            what is missing, and its history is the same bit for bit.
        chunk: how many trials run at a time, over all devices.
        report: is told how many trials of how many are done, after every chunk.

    Raises:
        BadInput: the folder has another sweep, or is being written to.
    """
    if folder is None:
        return _sweep(config, trials, data, chunk, report, lambda number, compute: compute())
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.locked(folder):
        _claim(folder / "sweep.txt", f"{_text(config)}\nchunk={chunk}\n{jax.device_get(trials)}\n")
        return _sweep(config, trials, data, chunk, report, functools.partial(_kept, folder))


def _sweep(
    config: Config,
    trials: Trial,
    data: Data,
    chunk: int,
    report: Callable[[int, int], Any],
    keep: Callable[[int, Callable[[], History]], History],
) -> History:
    count, devices = size(trials), jax.device_count()
    chunk = -(-min(chunk, count) // devices) * devices
    mesh = jax.make_mesh((devices,), ("trials",), axis_types=(AxisType.Auto,))
    data = jax.device_put(data, NamedSharding(mesh, P()))
    histories = []
    for number, first in enumerate(range(0, count, chunk)):
        # The last chunk is filled up with its last trial: one shape, one compilation.
        rows = np.minimum(np.arange(first, first + chunk), count - 1)
        here = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], trials)
        here = jax.device_put(here, NamedSharding(mesh, P("trials")))
        history = keep(number, lambda here=here: jax.device_get(_side_by_side(config, here, data)))
        histories.append(history)
        report(min(first + chunk, count), count)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *histories)


@functools.partial(jax.jit, static_argnums=0)
def _side_by_side(config: Config, trials: Trial, data: Data) -> History:
    return jax.vmap(functools.partial(train.train, config), (0, None))(trials, data)


def _kept(folder: Path, number: int, compute: Callable[[], History]) -> History:
    """The history of a chunk, from its file or else into it."""
    path = folder / f"chunk-{number:04}.npz"
    if not path.exists():
        arrays = compute()._asdict()
        atomic.write(path, lambda file: np.savez(file, **arrays))
    with np.load(path) as arrays:
        return History(**arrays)


def _claim(path: Path, text: str) -> None:
    """Makes sure that a folder is of this sweep, and of no other."""
    if not path.exists():
        atomic.write_text(path, text)
    elif path.read_text() != text:
        raise BadInput(
            f"{path.parent} has another sweep, of other trials or another config ({path.name} "
            "tells which): name another folder"
        )


def _text(config: Config) -> str:
    """The config, without the addresses that Python gives its functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(config))
