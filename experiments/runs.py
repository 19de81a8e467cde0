"""The folder that a run leaves: what it was, what happened, where it stood, and how it ended.

    config.json     the options, as they were meant
    versions.json   the versions and the machine that ran it
    metrics.jsonl   a line a step
    checkpoints/    the state after the latest epochs, by Orbax
    curves.png      the metrics as a picture
    result.json     written last: a folder without it is not a result

Each file is there whole or not at all, but for `metrics.jsonl`, which may be ahead of the
checkpoint; resuming cuts it back to there.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import atomic
from experiments.errors import BadInput
from experiments.train import History, State

PACKAGES = ("jaxclip", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
MARGIN = 1 << 20  # bytes, for what surrounds the arrays of a checkpoint
SERIES = ("loss", "norm", "limit", "clipped")


class Metrics(NamedTuple):
    """What `metrics.jsonl` says: the series f64[steps], and the score f64[epochs]."""

    loss: np.ndarray
    norm: np.ndarray
    limit: np.ndarray
    clipped: np.ndarray
    score: np.ndarray


class Run:
    """A run folder that exists, open for writing."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` says."""
        return read_json(self.folder / "config.json")

    @property
    def result(self) -> dict[str, Any] | None:
        """How the run ended, or None when it has not."""
        path = self.folder / "result.json"
        return read_json(path) if path.exists() else None

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps a second process out."""
        return atomic.locked(self.folder)

    def append(self, epoch: int, history: History) -> None:
        """Adds the lines of the epoch that ends as number `epoch`."""
        lines = [{"step": step, "epoch": epoch, **values} for step, values in rows(epoch, history)]
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.writelines(f"{to_json(line)}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def cut(self, steps: int) -> None:
        """Drops the lines of all steps but the first `steps`."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if len(lines) < steps:
            raise BadInput(f"{path} has {len(lines)} steps, and the checkpoint {steps}: start anew")
        atomic.write_text(path, "".join(lines[:steps]))

    def metrics(self) -> Metrics:
        """Reads `metrics.jsonl`."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        series = [np.array([row[name] for row in rows], float) for name in SERIES]
        return Metrics(*series, score=np.array([r["score"] for r in rows if "score" in r], float))

    def save(self, state: State) -> None:
        """Keeps the state, under the number of its epoch."""
        import orbax.checkpoint as ocp

        # Asked first, because Orbax tells a full disk in hundreds of lines, from its own threads.
        free = shutil.disk_usage(self.folder).free
        wanted = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + MARGIN
        if free < wanted:
            raise BadInput(
                f"{self.folder} is on a disk with {free >> 10} KiB left, and a checkpoint may take "
                f"{wanted >> 10}: make room, and go on with --resume {self.folder}"
            )
        with self.checkpoints() as manager:
            try:
                manager.save(int(state.epoch), args=ocp.args.StandardSave(state))
            except (OSError, ValueError) as error:
                raise BadInput(
                    f"the checkpoint cannot be written: {error}; go on with --resume {self.folder}"
                ) from error

    def restore(self, like: State) -> State | None:
        """Returns the latest state that was kept, or None; `like` tells its shapes."""
        import orbax.checkpoint as ocp

        with self.checkpoints() as manager:
            latest = manager.latest_step()
            if latest is None:
                return None
            return manager.restore(latest, args=ocp.args.StandardRestore(like))

    def checkpoints(self) -> Any:
        """The Orbax manager of this run's checkpoints; Orbax writes aside and renames."""
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        return ocp.CheckpointManager((self.folder / "checkpoints").resolve(), options=options)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Writes how the run ended, and returns what is written."""
        atomic.write_text(self.folder / "result.json", f"{to_json(result, indent=2)}\n")
        return plain(result)


def rows(epoch: int, history: History) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the steps of the epoch that ends as number `epoch`, with what happened in each.

    The last of them has the score.
    """
    columns = [np.asarray(getattr(history, name)).tolist() for name in SERIES]
    steps = len(columns[0])
    for index, values in enumerate(zip(*columns, strict=True)):
        score = {"score": float(history.score)} if index == steps - 1 else {}
        yield (epoch - 1) * steps + index, {**dict(zip(SERIES, values, strict=True)), **score}


def create(folder: Path | None, name: str, config: Mapping[str, Any]) -> Run:
    """Makes the folder of a new run.

    Args:
        folder: where; by default a new folder below `runs`, after the time and `name`.
        name: says what kind of run this is.
        config: the text of `config.json`, as a mapping.

    Raises:
        BadInput: the folder exists and holds something, or cannot be written.
    """
    wanted = folder or Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{slug(name)}"
    try:
        made = make_empty(wanted) if folder else make_unique(wanted)
        atomic.write_text(made / "config.json", f"{to_json(config, indent=2)}\n")
        atomic.write_text(made / "versions.json", f"{to_json(versions(), indent=2)}\n")
    except OSError as error:
        raise BadInput(
            f"{wanted} cannot be written ({error.strerror}): name another folder with --out"
        ) from error
    return Run(made)


def open_run(folder: Path) -> Run:
    """Returns the run in `folder`, or raises `BadInput` where there is none."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} is not the folder of a run: it holds no config.json")
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder} cannot be written: a run continues in its own folder")
    return Run(folder)


def make_empty(folder: Path) -> Path:
    """Makes `folder`, which may exist if it is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BadInput(
            f"{folder} holds something already: name another folder with --out, or continue the "
            f"run in it with --resume {folder}"
        )
    return folder


def make_unique(folder: Path) -> Path:
    """Makes `folder`, or the first of `folder-2`, `folder-3`, ... that does not exist."""
    number = 1
    while True:
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1


def slug(text: str) -> str:
    """Returns `text` with nothing in it that a file name should not have."""
    return re.sub(r"[^A-Za-z0-9_.=]+", "-", text).strip("-")[:80]


def versions() -> dict[str, str]:
    """Returns what a run's bits depend on besides its config."""
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "system": platform.platform(),
    }


def fingerprint(params: Any) -> str:
    """Returns the SHA-256 of the parameters' bytes: equal where they are equal bit for bit."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns JSON as everyone reads it: what is not finite, which JSON cannot say, is null."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """Returns `value` with None in place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read ({error}): this is not the folder of a run"
        ) from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds no JSON object: this is not the folder of a run")
    return value
