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
from experiments.errors import BadInput, Stopped
from experiments.pages import figures
from experiments.runs import page, progress, trackers
from experiments.runs.folder import Run, create_run, open_run
from experiments.runs.private import Privacy
from experiments.runs.stopping import NEVER, EarlyStopping, mean_loss
from experiments.training import train
from experiments.training.config import Config, Trial
from experiments.training.data import Data

# Each is compiled once for every config; the numbers and the data are arguments like any other.
init = jax.jit(train.init, static_argnums=0)
epoch = jax.jit(train.epoch, static_argnums=0)


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
        result = folder.result(Result) or fit(job, folder, place)
    if "stopped" in result:
        print(f"Stopped {result['stopped']}")
    print(conclusion(result))
    print(f"Kept in {folder.folder}")
    return result


def use(platform: str | None) -> None:
    """Makes JAX compute on `platform`, before it has looked at any other."""
    if platform is not None:
        jax.config.update("jax_platforms", platform)
    try:
        jax.devices(platform)
    except RuntimeError as error:
        raise BadInput(
            f"--platform {platform}: JAX finds no such device here; install its plugin, such as "
            f"'jax[cuda13]' for an NVIDIA GPU, or choose --platform cpu ({in_one_line(error)})"
        ) from error


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
        if place.resume is None:
            config = {**job.identity, "command": place.command}
            folder = stack.enter_context(create_run(place.out, job.title, config))
        else:
            folder = open_run(place.resume)
            stack.enter_context(folder.lock())
            check_identity(job.identity, folder)
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


def describe_origin(job: Job) -> dict[str, Any]:
    """Returns everything that the bits of a run depend on."""
    return {
        "config": dict(job.identity),
        "data_sha256": files.fingerprint(job.data),
        "versions": files.versions(*job.packages),
    }


def fit(job: Job, folder: Run, place: Place) -> Result:
    """Trains the missing epochs, and writes everything into the folder."""
    start = time.perf_counter()
    config, trial, origin = job.config, job.trial, describe_origin(job)
    data = jax.device_put(job.data)
    state = folder.restore(jax.eval_shape(init, config, trial, data), origin, config.epochs)
    if state is None:
        state = init(config, trial, data)
    done = int(state.epoch)
    steps = done * train.steps_per_epoch(config, data)
    folder.cut(steps)
    losses = folder.epoch_losses()
    stopped = job.stopping.reason(losses)
    folder.begin(origin["versions"])
    share = progress.clip_rate if config.per_example is None else progress.examples_clipped
    tracker = make_tracker(job, folder, place, steps)
    with (
        contextlib.closing(tracker),
        progress.report(config.epochs, done, share=share) as report,
    ):
        for number in range(done + 1, config.epochs + 1):
            if stopped is not None:
                break
            state, history = epoch(config, trial, data, state)
            history = jax.device_get(history)
            folder.append(number, history)
            trackers.log_epoch(tracker, number, history)
            folder.save(state, origin)
            report(number, history)
            losses.append(mean_loss(history.loss))
            stopped = job.stopping.reason(losses)
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
        "parameters_sha256": files.fingerprint(state.params),
    }
    if config.per_example is not None:
        result["examples_clipped"] = float(np.mean(metrics.clipped))
    if job.stopping != NEVER:
        reason = stopped or "the last one"
        result["stopped"] = f"after epoch {len(losses)} of {config.epochs}: {reason}"
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


def in_one_line(error: BaseException) -> str:
    """Returns the message of an error without its line breaks."""
    return " ".join(str(error).split())
