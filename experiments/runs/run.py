"""A run: one training, and the folder that it leaves."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np

from experiments import files
from experiments.errors import BadInput, Stopped, in_one_line
from experiments.pages import figures
from experiments.processes import is_first, of_first
from experiments.runs import page, progress, trackers
from experiments.runs.folder import Run, create_run, open_run
from experiments.runs.private import Privacy
from experiments.runs.stopping import NEVER, EarlyStopping, mean_loss
from experiments.training import train
from experiments.training.config import Config, Trial
from experiments.training.data import Data
from experiments.training.parallel import Trainer
from experiments.training.train import History

Log = Callable[[int, History], None]


class Result(TypedDict):
    """The content of `result.json`; null is not finite.

    Attributes:
        accuracy: on the test data, after the last epoch.
        clip_rate: the share of the steps in which any block, or any example, was clipped.
        examples_clipped: the mean share of the examples of a batch that were clipped.
        norm_median: of the norms before the clip.
        norm_max: of the norms before the clip.
        steps: the number of steps.
        stopped: after which epoch and why, where a rule may stop the run early.
        seconds: of this process.
        parameters_sha256: equal where the parameters are, bit for bit.
        privacy: of a private training.
    """

    accuracy: float
    clip_rate: float
    examples_clipped: NotRequired[float]
    norm_median: float | None
    norm_max: float | None
    steps: int
    stopped: NotRequired[str]
    seconds: float
    parameters_sha256: str
    privacy: NotRequired[Privacy]


@dataclasses.dataclass(frozen=True)
class Job:
    """The training of a run.

    Attributes:
        title: its name.
        identity: the options that decide its bits, as JSON values.
        config: the code of the training.
        trial: its numbers.
        data: the examples.
        stopping: when it stops before its last epoch.
        packages: further packages that its bits depend on.
        privacy: the guarantee, where there is one.
    """

    title: str
    identity: Mapping[str, Any]
    config: Config
    trial: Trial
    data: Data
    stopping: EarlyStopping = NEVER
    packages: Sequence[str] = ()
    privacy: Privacy | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run leaves its files, and where it is logged.

    Attributes:
        out: a new folder, or None for one below `runs`.
        resume: the folder of a run to be continued, or None.
        tensorboard: whether to write event files.
        wandb: a project of Weights & Biases, or None.
        command: the command line, for the record.
        again: returns the command that continues the run in a folder.
    """

    out: Path | None = None
    resume: Path | None = None
    tensorboard: bool = False
    wandb: str | None = None
    command: str = ""
    again: Callable[[Path], str] = str


def run(job: Job, place: Place) -> Result:
    """Trains, or continues, and returns the content of `result.json`."""
    check(job)
    with open_folder(job, place) as folder:
        result = of_first(lambda: folder.result(Result)) or fit(job, folder, place)
    if is_first():
        if "stopped" in result:
            print(f"Stopped {result['stopped']}")
        print(conclusion(result))
        print(f"Kept in {folder.folder}")
    return result


def check(job: Job) -> None:
    """Raises `BadInput` for errors that only the data and the parameters show."""
    config = job.config
    check_batch_size(config.batch_size, train.example_count(job.data))
    params = jax.eval_shape(config.task.init, jax.random.key(0))
    clip = config.clip(job.trial.limit)
    try:
        state = jax.eval_shape(clip.init, params)
        jax.eval_shape(clip.update, params, state, params)
        train.find_metrics(state)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"--clip {config.clip} does not suit the model: {in_one_line(error)}"
        ) from error


def check_batch_size(batch_size: int, examples: int) -> None:
    """Raises `BadInput` where a batch has more examples than there are."""
    if batch_size > examples:
        raise BadInput(
            f"--batch-size is {batch_size}, and there are {examples} examples: give {examples} "
            f"or less"
        )


@contextlib.contextmanager
def open_folder(job: Job, place: Place) -> Iterator[Run]:
    """Opens the folder to write into, a new one or the one to be resumed, for this process alone.

    Raises:
        BadInput: the folder cannot be used, or is that of a run with other options.
        Stopped: the user stopped the run; the message is the command that continues it.
    """
    with contextlib.ExitStack() as stack:

        def open_first() -> str:
            if place.resume is None:
                config = {**job.identity, "command": place.command}
                folder = stack.enter_context(create_run(place.out, job.title, config))
            else:
                folder = open_run(place.resume)
                stack.enter_context(folder.lock())
                check_identity(job.identity, folder)
            return str(folder.folder)

        folder = Run(Path(of_first(open_first)))
        try:
            yield folder
        except KeyboardInterrupt as error:
            raise Stopped(place.again(folder.folder)) from error


def check_identity(wanted: Mapping[str, Any], folder: Run) -> None:
    """Raises `BadInput` where the options of a run differ from those that are wanted."""
    kept = folder.identity
    different = [key for key in wanted.keys() | kept.keys() if wanted.get(key) != kept.get(key)]
    if different:
        changes = ", ".join(
            f"--{key.replace('_', '-')} is {wanted.get(key)} here and {kept.get(key)} there"
            for key in sorted(different)
        )
        raise BadInput(
            f"{folder.folder} is a run with another config: {changes}; resume it without these "
            f"options, or start a new run"
        )


def describe_origin(job: Job, devices: int) -> dict[str, Any]:
    """Returns everything that the bits of a run depend on."""
    return {
        "config": dict(job.identity),
        "data_sha256": files.fingerprint(job.data),
        "versions": files.versions(*job.packages),
        "devices": devices,
    }


def fit(job: Job, folder: Run, place: Place) -> Result:
    """Trains the missing epochs, and writes everything into the folder.

    Several processes do the same, of which only the first one writes, but for the checkpoints, to
    which each adds what it holds.
    """
    start = time.perf_counter()
    trainer = Trainer(job.config, job.trial, job.data)
    origin = describe_origin(job, trainer.mesh.size)
    epochs = job.config.epochs
    state = folder.restore(trainer.shape(), origin, epochs) or trainer.init()
    done = int(state.epoch)
    steps = done * train.steps_per_epoch(job.config, job.data)
    losses = of_first(lambda: folder.begin(steps, origin["versions"]))
    stopped = job.stopping.reason(losses)
    with open_log(job, folder, place, done, steps) as (log, report):
        for number in range(done + 1, epochs + 1):
            if stopped is not None:
                break
            state, history = trainer.epoch(state)
            log(number, history)
            folder.save(state, origin)
            report(number, history)
            losses.append(mean_loss(np.asarray(history.loss)))
            stopped = job.stopping.reason(losses)
    if job.stopping != NEVER:
        stopped = f"after epoch {len(losses)} of {epochs}: {stopped or 'the last one'}"
    sha256 = files.fingerprint(state.params)
    return of_first(lambda: conclude(job, folder, stopped, sha256, start))


@contextlib.contextmanager
def open_log(
    job: Job, folder: Run, place: Place, done: int, steps: int
) -> Iterator[tuple[Log, Log]]:
    """Yields what keeps and what reports an epoch, functions of its number and its history.

    In all processes but the first one they do nothing.

    Args:
        job: the training.
        folder: its folder.
        place: where it is logged.
        done: the number of epochs that an earlier process has done.
        steps: the number of steps in them.
    """
    if not is_first():
        yield skip, skip
        return
    config = job.config
    share = progress.clip_rate if config.per_example is None else progress.examples_clipped
    tracker = make_tracker(job, folder, place, steps)
    with (
        contextlib.closing(tracker),
        progress.report(config.epochs, done, share=share) as report,
    ):

        def log(number: int, history: History) -> None:
            folder.append(number, history)
            trackers.log_epoch(tracker, number, history)

        yield log, report


def skip(number: int, history: History) -> None:
    """Does nothing with an epoch."""


def conclude(
    job: Job, folder: Run, stopped: str | None, parameters_sha256: str, start: float
) -> Result:
    """Draws and writes how a run ended.

    Args:
        job: the training.
        folder: its folder, with all metrics.
        stopped: after which epoch and why, where a rule may stop it early.
        parameters_sha256: of the last parameters.
        start: of this process, as `time.perf_counter` has it.
    """
    metrics = folder.metrics()
    drawn = page.make_figures(metrics)
    files.write(folder.folder / "curves.png", lambda file: figures.save(drawn, file, "png"))
    result: Result = {
        "accuracy": float(metrics.score[-1]),
        "clip_rate": float(np.mean(metrics.clipped > 0)),
        "norm_median": float(np.median(metrics.norm)),
        "norm_max": float(np.max(metrics.norm)),
        "steps": len(metrics.loss),
        "seconds": round(time.perf_counter() - start, 3),
        "parameters_sha256": parameters_sha256,
    }
    if job.config.per_example is not None:
        result["examples_clipped"] = float(np.mean(metrics.clipped))
    if stopped is not None:
        result["stopped"] = stopped
    if job.privacy is not None:
        result["privacy"] = job.privacy
    folder.finish(result)
    return folder.result(Result)


def make_tracker(job: Job, folder: Run, place: Place, steps: int) -> trackers.Tracker:
    """Returns the trackers of a run that has `steps` steps so far."""
    asked: list[trackers.Tracker] = []
    if place.tensorboard:
        asked.append(trackers.TensorBoard(folder.folder / "tensorboard", steps))
    if place.wandb is not None:
        config = {**job.identity, "command": place.command}
        asked.append(trackers.WeightsAndBiases(place.wandb, job.title, config, folder.folder))
    return trackers.Several(asked)


def conclusion(result: Result) -> str:
    """Returns the line that a run ends with."""
    start = f"Accuracy: {100 * result['accuracy']:.2f} %  "
    if "privacy" in result:
        privacy, clipped = result["privacy"], result.get("examples_clipped", 0.0)
        return (
            f"{start}at epsilon {privacy['epsilon']:g}, delta {privacy['delta']:g}  (noise "
            f"multiplier {privacy['noise_multiplier']:.3f}, examples clipped "
            f"{100 * clipped:.1f} %)"
        )
    median, largest = (
        "not finite" if number is None else f"{number:.3f}"
        for number in (result["norm_median"], result["norm_max"])
    )
    return (
        f"{start}(clip rate {100 * result['clip_rate']:.1f} %, norm: median {median}, maximum "
        f"{largest})"
    )
