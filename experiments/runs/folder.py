"""The folder of a run: its options, its metrics, its checkpoints and its result.

    config.json     the options, defaults included
    versions.json   the versions and the machine that ran it
    metrics.jsonl   a line a step
    checkpoints/    the state after the latest epochs, by Orbax, each with a fingerprint beside it
    curves.png      the metrics as a picture
    result.json     written last: a folder without it is not a result

Each file is there whole or not at all, but for `metrics.jsonl`, which may be ahead of the
checkpoint; resuming cuts it back to there.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import numpy as np

from experiments import files
from experiments.errors import BadInput, in_one_line
from experiments.processes import is_first, of_first
from experiments.runs.stopping import mean_loss
from experiments.training.train import History, State

MARGIN = 1 << 20  # bytes, for the metadata of a checkpoint
SERIES = ("loss", "norm", "limit", "clipped")


class Metrics(NamedTuple):
    """The content of `metrics.jsonl`: series f64[steps], and the score f64[epochs]."""

    loss: np.ndarray
    norm: np.ndarray
    limit: np.ndarray
    clipped: np.ndarray
    score: np.ndarray


class Line(TypedDict):
    """A line of `metrics.jsonl`: a step, counted from 0; null is not finite.

    The last step of an epoch has the score.
    """

    step: int
    epoch: int
    loss: float | None
    norm: float | None
    limit: float | None
    clipped: float | None
    score: NotRequired[float | None]


class Checkpoint(TypedDict):
    """The file beside a checkpoint, written last: without it the checkpoint does not count.

    Attributes:
        files_sha256: of every file of the checkpoint, by its path.
        state: the path, dtype and shape of every array in the state that they hold.
        state_sha256: of the state.
        made_by: describes the training that it comes from.
    """

    files_sha256: Mapping[str, str]
    state: list[str]
    state_sha256: str
    made_by: Mapping[str, Any]


class Run:
    """A run folder that exists, open for writing."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        remedy = "restore it, or start a new run"
        return files.read_json(self.folder / "config.json", Mapping[str, Any], remedy)

    @property
    def identity(self) -> dict[str, Any]:
        """The options that decide the run's bits."""
        return {key: value for key, value in self.config.items() if key != "command"}

    @property
    def versions(self) -> dict[str, str]:
        """The content of `versions.json`."""
        remedy = "restore it, or start a new run"
        return files.read_json(self.folder / "versions.json", Mapping[str, str], remedy)

    def result(self, expected: Any = Mapping[str, Any]) -> Any:
        """Returns how the run ended, a record of the expected type, or None when it has not."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        return files.read_json(path, expected, "delete it, and resume the run to write it again")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out, and removes the parts that killed ones left."""
        with files.lock(self.folder):
            files.remove_parts(self.folder)
            yield

    def begin(self, steps: int, versions: Mapping[str, str]) -> list[float]:
        """Drops what is beyond the checkpoint, and returns the mean loss of every epoch before it.

        Args:
            steps: the number of steps up to the checkpoint.
            versions: the versions and the machine that train from here on.
        """
        self.cut(steps)
        losses = self.epoch_losses()
        files.write_json(self.folder / "versions.json", versions)
        return losses

    def append(self, epoch: int, history: History) -> None:
        """Adds the lines of the epoch that ends as number `epoch`."""
        lines = [{"step": step, "epoch": epoch, **values} for step, values in rows(epoch, history)]
        files.append_lines(self.folder / "metrics.jsonl", lines)

    def cut(self, steps: int) -> None:
        """Drops the lines of all steps but the first `steps`."""
        lines = self.lines(steps)
        if len(lines) < steps:
            raise BadInput(
                f"{self.folder / 'metrics.jsonl'} has {len(lines)} steps, and the checkpoint "
                f"{steps}: start a new run"
            )
        text = "".join(f"{files.to_json(line)}\n" for line in lines)
        files.write_text(self.folder / "metrics.jsonl", text)

    def lines(self, steps: int | None = None) -> list[Line]:
        """Reads the first `steps` lines of `metrics.jsonl`, by default all of them."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        remedy = "restore it, or start a new run"
        lines = files.read_lines(path, Line, remedy, steps)
        epoch = 1
        for index, line in enumerate(lines):
            if (line["step"], line["epoch"]) != (index, epoch):
                raise BadInput(
                    f"{path} is damaged (line {index + 1} is step {line['step']} of epoch "
                    f"{line['epoch']}, not step {index} of epoch {epoch}): {remedy}"
                )
            epoch += "score" in line
        return lines

    def metrics(self) -> Metrics:
        """Reads `metrics.jsonl`."""
        lines = self.lines()
        series = [np.array([line[name] for line in lines], float) for name in SERIES]
        scores = [line["score"] for line in lines if "score" in line]
        return Metrics(*series, score=np.array(scores, float))

    def epoch_losses(self) -> list[float]:
        """Returns the mean loss of every epoch in `metrics.jsonl`."""
        by_epoch: dict[int, list[float]] = {}
        for line in self.lines():
            loss = math.nan if line["loss"] is None else line["loss"]
            by_epoch.setdefault(line["epoch"], []).append(loss)
        return [mean_loss(losses) for losses in by_epoch.values()]

    def save(self, state: State, made_by: Mapping[str, Any]) -> None:
        """Keeps the state, under the number of its epoch.

        Args:
            state: parameters, optimizer state and epoch.
            made_by: describes the training, as `restore` compares it.
        """
        import orbax.checkpoint as ocp

        # Asked first, because Orbax reports a full disk in hundreds of lines, from its own threads.
        free = shutil.disk_usage(self.folder).free
        wanted = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + MARGIN
        if free < wanted:
            raise BadInput(
                f"{self.folder} is on a disk with {free >> 10} KiB left, and a checkpoint may take "
                f"{wanted >> 10}: make room, and continue with --resume {self.folder}"
            )
        epoch = int(state.epoch)
        with self.checkpoints() as manager:
            try:
                manager.save(epoch, args=ocp.args.StandardSave(state))
            except (OSError, ValueError) as error:
                raise BadInput(
                    f"the checkpoint cannot be written: {error}; continue with --resume "
                    f"{self.folder}"
                ) from error
            kept = manager.all_steps()
        if is_first():
            self.save_record(state, made_by, kept)

    def save_record(self, state: State, made_by: Mapping[str, Any], kept: Iterable[int]) -> None:
        """Writes the file beside a checkpoint, and deletes those of checkpoints that are gone.

        Args:
            state: as in the checkpoint.
            made_by: describes the training.
            kept: the epochs that have checkpoints.
        """
        epoch = int(state.epoch)
        record = Checkpoint(
            files_sha256=files.checksums(self.checkpoint(epoch)),
            state=files.structure(state),
            state_sha256=files.fingerprint(state),
            made_by=made_by,
        )
        files.write_json(self.record(epoch), record)
        records = {self.record(step) for step in kept}
        for path in set(self.record(epoch).parent.glob("*.json")) - records:
            path.unlink()

    def restore(
        self,
        like: State,
        made_by: Mapping[str, Any],
        epochs: int,
        tell: Callable[[str], object] = print,
    ) -> State | None:
        """Returns the latest state that is intact, or None where there is none.

        Damaged checkpoints are deleted.

        Args:
            like: has the structure, shapes and dtypes of the state.
            made_by: describes this training; the checkpoint has to come from the same one.
            epochs: of the whole training.
            tell: receives a line a damaged checkpoint.

        Raises:
            BadInput: the checkpoint comes from another training, or from a later epoch.
        """
        for epoch in of_first(lambda: sorted(self.checkpoint_epochs(), reverse=True)):
            if epoch > epochs:
                raise BadInput(
                    f"{self.folder} has a checkpoint of epoch {epoch}, and the run has {epochs} "
                    f"epochs: restore its config.json, or start a new run"
                )
            try:
                record = self.verify(epoch, like)
                if different := files.differences(record["made_by"], made_by):
                    break
                return self.read(epoch, like, record["state_sha256"])
            except ValueError as error:
                if is_first():
                    tell(
                        f"The checkpoint of epoch {epoch} is damaged ({in_one_line(error)}); it is "
                        f"deleted, and the run continues from the one before it."
                    )
                    self.delete(epoch)
        else:
            return None
        raise BadInput(
            f"the checkpoint in {self.folder} comes from another training "
            f"({', '.join(different)}): resume it with the versions, options, data and devices "
            f"that made it, or start a new run"
        )

    def checkpoint_epochs(self) -> list[int]:
        """Returns the epochs that have checkpoints."""
        folder = self.folder / "checkpoints"
        if not folder.exists():
            return []
        with files.read_errors(folder, "remove it, and resume the run"):
            return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]

    def verify(self, epoch: int, like: State) -> Checkpoint:
        """Returns the record of a checkpoint, or raises `ValueError` where it is damaged."""
        record, damage = of_first(lambda: self.inspect(epoch, like))
        if record is None:
            raise ValueError(damage)
        return record

    def inspect(self, epoch: int, like: State) -> tuple[Checkpoint | None, str]:
        """Returns the record of a checkpoint, or None and what is wrong with it."""
        path = self.record(epoch)
        try:
            record = files.read_json(path, Checkpoint, "the checkpoint does not count")
        except BadInput as error:
            return None, str(error)
        # Before Orbax reads them: its reports of damaged files are pages long.
        if files.checksums(self.checkpoint(epoch)) != record["files_sha256"]:
            return None, "the SHA-256 of its files are not those beside it"
        if record["state"] != files.structure(like):
            return None, "it holds other arrays than this version has"
        return record, ""

    def read(self, epoch: int, like: State, sha256: str) -> State:
        """Returns the state of a checkpoint, or raises `ValueError` where it is damaged."""
        import orbax.checkpoint as ocp

        with self.checkpoints() as manager:
            try:
                state = manager.restore(epoch, args=ocp.args.StandardRestore(like))
            except Exception as error:  # those of Orbax have no class in common
                raise ValueError(f"Orbax: {files.shorten(str(error))}") from error
        if files.fingerprint(state) != sha256:
            raise ValueError("the SHA-256 of its state is not the one beside it")
        if int(state.epoch) != epoch:
            raise ValueError(f"its state is that of epoch {int(state.epoch)}")
        return state

    def delete(self, epoch: int) -> None:
        """Deletes a checkpoint and the file beside it."""
        for path in (self.checkpoint(epoch), self.record(epoch)):
            with files.write_errors(path):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def checkpoint(self, epoch: int) -> Path:
        """Returns the path of a checkpoint."""
        return self.folder / "checkpoints" / str(epoch)

    def record(self, epoch: int) -> Path:
        """Returns the path of the file beside a checkpoint."""
        return self.checkpoint(epoch).with_suffix(".json")

    def checkpoints(self) -> Any:
        """Returns the Orbax manager of the checkpoints; Orbax writes aside and renames."""
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        folder = (self.folder / "checkpoints").resolve()
        with files.write_errors(folder):
            return ocp.CheckpointManager(folder, options=options)

    def finish(self, result: Any) -> None:
        """Writes how the run ended."""
        files.write_json(self.folder / "result.json", result)


def rows(epoch: int, history: History) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the steps of the epoch that ends as number `epoch`, with the metrics of each.

    The last of them has the score.
    """
    columns = [np.asarray(getattr(history, name)).tolist() for name in SERIES]
    steps = len(columns[0])
    for index, values in enumerate(zip(*columns, strict=True)):
        score = {"score": float(history.score)} if index == steps - 1 else {}
        yield (epoch - 1) * steps + index, {**dict(zip(SERIES, values, strict=True)), **score}


@contextlib.contextmanager
def create_run(folder: Path | None, name: str, config: Mapping[str, Any]) -> Iterator[Run]:
    """Makes the folder of a new run, and keeps other processes out of it.

    Args:
        folder: where; by default a new folder below `runs`, after the time and `name`.
        name: a short description of the run.
        config: the content of `config.json`.

    Raises:
        BadInput: the folder holds something, another process is writing into it, or it cannot be
            written.
    """
    wanted = folder or new_name(Path("runs"), f"{datetime.now():%Y-%m-%d-%H%M%S}-{name}")
    with files.open_folder(wanted) as new:
        if not new:
            raise BadInput(
                f"{wanted} holds something already: name another folder with --out, or continue "
                f"the run in it with --resume {wanted}"
            )
        files.remove_parts(wanted)
        files.write_json(wanted / "config.json", config)
        yield Run(wanted)


def new_name(parent: Path, name: str) -> Path:
    """Makes the folder `name`, or the first of `name-2`, `name-3`, ... that does not exist."""
    number = 1
    while True:
        candidate = parent / (files.slug(name) + (f"-{number}" if number > 1 else ""))
        with files.write_errors(candidate):
            try:
                candidate.mkdir(parents=True)
                return candidate
            except FileExistsError:
                number += 1


def open_run(folder: Path) -> Run:
    """Returns the run in `folder`, or raises `BadInput` where there is none."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} is not the folder of a run: it holds no config.json")
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder} cannot be written: a run continues in its own folder")
    return Run(folder)
