"""Trackers of a run besides its own folder: TensorBoard, Weights & Biases.

Each is a `Tracker`; the training loop knows only its two methods.
"""

import contextlib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiments.errors import BadInput
from experiments.runs.folder import rows
from experiments.training.train import History


class Tracker(Protocol):
    """Logs the metrics of a run, step by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of a step; nan and inf are values like any other."""
        ...

    def close(self) -> None:
        """Flushes and closes; may be called twice."""
        ...


class TensorBoard:
    """Event files, which TensorBoard shows: `tensorboard --logdir FOLDER`.

    Args:
        folder: where the files are; a run that is resumed adds one.
        first: the next step. TensorBoard hides this step and later ones of earlier files in the
            folder.
    """

    def __init__(self, folder: Path, first: int = 0):
        from tensorboardX import SummaryWriter  # it takes a while, and few want it

        # File names resolve seconds, and a run may stop and continue within one.
        suffix = f".{os.getpid()}.{first}"
        self.writer = SummaryWriter(str(folder), purge_step=first or None, filename_suffix=suffix)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curve of every name; TensorBoard marks nan and inf."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes all pending points."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; without a network, set `WANDB_MODE=offline` and sync it later.

    Args:
        project: the project that the run belongs to.
        name: its name. A resumed run is a second run of that name.
        config: its options, shown beside it.
        folder: its files go into the folder `wandb` below it.
    """

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path):
        wandb = import_optional("wandb", "init", "Weights & Biases")
        try:
            self.run = wandb.init(project=project, name=name, config=dict(config), dir=str(folder))
        except wandb.Error as error:
            reason = str(error).rstrip(".")
            raise BadInput(
                f"Weights & Biases does not start: {reason}; log in by `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Waits until all values are uploaded."""
        self.run.finish()


class Several:
    """Any number of trackers as one.

    Args:
        trackers: they receive every call; there may be none.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()):
        self.trackers = tuple(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs to each of them."""
        for tracker in self.trackers:
            tracker.log(step, values)

    def close(self) -> None:
        """Closes each of them, even where another fails to close."""
        with contextlib.ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.close)


def log_epoch(tracker: Tracker, epoch: int, history: History) -> None:
    """Logs the epoch that ends as number `epoch`, its score last."""
    for step, values in rows(epoch, history):
        tracker.log(step, values)


def import_optional(module: str, attribute: str, name: str) -> Any:
    """Returns an optional module, or raises `BadInput` with the command that installs it."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        found = None
    # A mere folder of that name, such as Weights & Biases leaves behind, imports as a module too.
    if not hasattr(found, attribute):
        raise BadInput(f"{name} is not installed here: pip install {module}, or do without it")
    return found
