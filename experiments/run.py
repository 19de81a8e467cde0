"""The command `run`: one training, and the folder that it leaves."""

import contextlib
import dataclasses
import time
import typing
from collections.abc import Iterator
from typing import Any, TypedDict, TypeVar

import jax
import numpy as np

from experiments import curves, files, progress, runs, trackers, train
from experiments.config import Config, Trial
from experiments.data import Data
from experiments.errors import BadInput, Stopped
from experiments.options import PLACES, RunMnist, continuation, flag
from experiments.private_options import RunPrivate

# Each is compiled once for every config; the numbers and the data are arguments like any other.
init = jax.jit(train.init, static_argnums=0)
epoch = jax.jit(train.epoch, static_argnums=0)

Options = TypeVar("Options", bound=RunMnist | RunPrivate)


class Result(TypedDict):
    """What `result.json` says; null is not finite."""

    accuracy: float
    clip_rate: float
    norm_median: float | None
    norm_max: float | None
    steps: int
    seconds: float
    parameters_sha256: str


def run(options: RunMnist, command: str = "") -> Result:
    """Trains as the options say, and returns what `result.json` says.

    Args:
        options: what the user typed; of a run that is resumed, the options that it has.
        command: how it was typed, for the record.
    """
    use(options.platform)
    config, trial = options.config(), options.trial()
    examples = config.task.data(options.mnist_dir)
    check(config, trial, examples)
    with opened(options, title(options), command) as folder:
        result = folder.result(Result) or fit(config, trial, examples, folder, options)
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
            f"--platform {platform}: JAX finds no such device here; install what it needs, such as "
            f"'jax[cuda13]' for an NVIDIA GPU, or choose --platform cpu ({one_line(error)})"
        ) from error


def check(config: Config, trial: Trial, examples: Data) -> None:
    """Raises `BadInput` for what only the data and the parameters can tell."""
    check_batch_size(config.batch_size, len(jax.tree.leaves(examples.train)[0]))
    params = jax.eval_shape(config.task.init, jax.random.key(0))
    clip = config.clip(trial.limit)
    try:
        state = jax.eval_shape(clip.init, params)
        jax.eval_shape(clip.update, params, state, params)
        train.studied(state)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"--clip {config.clip} does not suit the model: {one_line(error)}"
        ) from error


def check_batch_size(batch_size: int, examples: int) -> None:
    """Raises `BadInput` where a batch has more examples than there are."""
    if batch_size > examples:
        raise BadInput(
            f"{flag('batch_size')} is {batch_size}, and there are {examples} examples: give "
            f"{examples} or less"
        )


@contextlib.contextmanager
def opened(options: RunMnist | RunPrivate, name: str, command: str) -> Iterator[runs.Run]:
    """Opens the folder to write into, a new one or the one to be resumed, for this process alone.

    Raises:
        BadInput: the folder cannot be used, or is that of a run with other options.
        Stopped: the user stopped the run; the message is the command that continues it.
    """
    wanted = options.spelled_out()
    with contextlib.ExitStack() as stack:
        if options.resume is None:
            config = {**wanted, "command": command}
            folder = stack.enter_context(runs.created(options.out, name, config))
        else:
            folder = runs.open_run(options.resume)
            stack.enter_context(folder.lock())
            check_same(wanted, folder)
        try:
            yield folder
        except KeyboardInterrupt as error:
            raise Stopped(continuation(options, wanted["task"], folder.folder)) from error


def check_same(wanted: dict[str, Any], folder: runs.Run) -> None:
    """Raises `BadInput` where a run has other options than those that are wanted."""
    kept = identity(folder)
    different = [key for key in wanted.keys() | kept.keys() if wanted.get(key) != kept.get(key)]
    if different:
        changes = ", ".join(
            f"{flag(key)} is {wanted.get(key)} here and {kept.get(key)} there"
            for key in sorted(different)
        )
        raise BadInput(
            f"{folder.folder} is a run with another config: {changes}; resume it without these "
            f"options, or start a new run"
        )


def identity(folder: runs.Run) -> dict[str, Any]:
    """Returns the options that decide what a run is."""
    return {key: value for key, value in folder.config.items() if key != "command"}


def resumed(options: Options) -> Options:
    """Returns the options of the run that `options` resume.

    Raises:
        BadInput: the folder is not that of such a run, or its `config.json` is damaged.
    """
    assert options.resume is not None
    kept = identity(runs.open_run(options.resume))
    task = options.spelled_out()["task"]
    path = options.resume / "config.json"
    if kept.get("task") != task:
        raise BadInput(f"{path} is that of a run of {kept.get('task')}, not of {task}")
    hints = {
        name: hint for name, hint in typing.get_type_hints(type(options)).items()
        if name not in PLACES
    } | {"task": str}  # fmt: skip
    with files.readable(path, "restore it, or start a new run"):
        files.check_record(kept, hints, hints)
        del kept["task"]
        for name, value in kept.items():
            if isinstance(value, list):
                kept[name] = tuple(value)
        found = dataclasses.replace(options, **kept)
        found.check()
        return found


def made_by(folder: runs.Run, data: Data) -> dict[str, Any]:
    """Returns all that the bits of a run depend on."""
    return {
        "config": identity(folder),
        "data_sha256": files.fingerprint(data),
        "versions": files.versions(),
    }


def title(options: RunMnist) -> str:
    """Returns the name of a run."""
    limit = [] if options.limit is None else [options.limit]
    return " ".join([options.dataset, options.clip, *limit])


def fit(
    config: Config, trial: Trial, examples: Data, folder: runs.Run, options: RunMnist
) -> Result:
    """Trains what is left to train, and writes everything into the folder."""
    start = time.perf_counter()
    origin = made_by(folder, examples)
    examples = jax.device_put(examples)
    state = folder.restore(jax.eval_shape(init, config, trial, examples), origin, config.epochs)
    if state is None:
        state = init(config, trial, examples)
    done = int(state.epoch)
    steps = done * train.steps_per_epoch(config, examples)
    folder.cut(steps)
    folder.begin()
    tracker = tracked(options, folder, steps)
    with contextlib.closing(tracker), progress.report(config.epochs, done) as report:
        for number in range(done + 1, config.epochs + 1):
            state, history = epoch(config, trial, examples, state)
            history = jax.device_get(history)
            folder.append(number, history)
            trackers.log_epoch(tracker, number, history)
            folder.save(state, origin)
            report(number, history)
    metrics = folder.metrics()
    curves.draw(metrics, title(options), folder.folder / "curves.png")
    result: Result = {
        "accuracy": float(metrics.score[-1]),
        "clip_rate": float(np.mean(metrics.clipped > 0)),
        "norm_median": float(np.median(metrics.norm)),
        "norm_max": float(np.max(metrics.norm)),
        "steps": len(metrics.loss),
        "seconds": round(time.perf_counter() - start, 3),
        "parameters_sha256": files.fingerprint(state.params),
    }
    folder.finish(result)
    return folder.result(Result)


def tracked(options: RunMnist, folder: runs.Run, steps: int) -> trackers.Tracker:
    """Returns what is told of every step besides the folder, which has seen `steps` of them."""
    asked: list[trackers.Tracker] = []
    if options.tensorboard:
        asked.append(trackers.TensorBoard(folder.folder / "tensorboard", steps))
    if options.wandb is not None:
        name = title(options)
        asked.append(trackers.WeightsAndBiases(options.wandb, name, folder.config, folder.folder))
    return trackers.Several(asked)


def conclusion(result: Result) -> str:
    """Returns the line that a run ends with."""
    median, largest = (
        "not finite" if number is None else f"{number:.3f}"
        for number in (result["norm_median"], result["norm_max"])
    )
    return (
        f"Accuracy: {100 * result['accuracy']:.2f} %  "
        f"(clip rate {100 * result['clip_rate']:.1f} %, norm: median {median}, maximum {largest})"
    )


def one_line(error: BaseException) -> str:
    """Returns the message of an error without its line breaks."""
    return " ".join(str(error).split())
