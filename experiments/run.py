"""The command `run`: one training, and the folder that it leaves."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from experiments import curves, progress, runs, trackers, train
from experiments.config import Config, Trial
from experiments.data import Data
from experiments.errors import BadInput
from experiments.options import RunMnist, flag

# Each is compiled once for every config; the numbers and the data are arguments like any other.
init = jax.jit(train.init, static_argnums=0)
epoch = jax.jit(train.epoch, static_argnums=0)


def run(options: RunMnist, command: str = "") -> dict[str, Any]:
    """Trains as the options say, and returns what `result.json` says.

    Args:
        options: what the user typed; of a run that is resumed, the options that it has.
        command: how it was typed, for the record.
    """
    use(options.platform)
    config, trial = options.config(), options.trial()
    examples = config.task.data(options.mnist_dir)
    check(config, trial, examples)
    folder = open_folder(options, command)
    with folder.lock():
        result = folder.result or fit(config, trial, examples, folder, options)
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
    rows = len(jax.tree.leaves(examples.train)[0])
    if config.batch_size > rows:
        raise BadInput(
            f"{flag('batch_size')} is {config.batch_size}, and there are {rows} examples: give "
            f"{rows} or less"
        )
    params = jax.eval_shape(config.task.init, jax.random.key(0))
    clip = config.clip(trial.limit)
    try:
        state = jax.eval_shape(clip.init, params)
        jax.eval_shape(clip.update, params, state, params)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"--clip {config.clip} does not suit the model: {one_line(error)}"
        ) from error


def open_folder(options: RunMnist, command: str) -> runs.Run:
    """Returns the folder to write into: a new one, or the one to be resumed."""
    wanted = options.spelled_out()
    if options.resume is None:
        return runs.create(options.out, title(options), {**wanted, "command": command})
    folder = runs.open_run(options.resume)
    kept = {key: value for key, value in folder.config.items() if key != "command"}
    different = [key for key in wanted.keys() | kept.keys() if wanted.get(key) != kept.get(key)]
    if different:
        changes = ", ".join(
            f"{flag(key)} is {wanted.get(key)} here and {kept.get(key)} there"
            for key in sorted(different)
        )
        raise BadInput(
            f"{options.resume} is a run with another config: {changes}; resume it without these "
            f"options, or start a new run"
        )
    return folder


def resumed(options: RunMnist) -> RunMnist:
    """Returns the options of the run that `options` resume."""
    assert options.resume is not None
    kept = runs.open_run(options.resume).config
    names = {field.name for field in dataclasses.fields(options)}
    known = {key: value for key, value in kept.items() if key in names}
    try:
        return dataclasses.replace(options, **{**known, "hidden": tuple(kept["hidden"])})
    except (KeyError, TypeError) as error:
        raise BadInput(f"{options.resume}/config.json is not of this version: {error}") from error


def title(options: RunMnist) -> str:
    """Returns the name of a run."""
    limit = [] if options.limit is None else [options.limit]
    return " ".join([options.dataset, options.clip, *limit])


def fit(
    config: Config, trial: Trial, examples: Data, folder: runs.Run, options: RunMnist
) -> dict[str, Any]:
    """Trains what is left to train, and writes everything into the folder."""
    start = time.perf_counter()
    examples = jax.device_put(examples)
    state = folder.restore(jax.eval_shape(init, config, trial, examples))
    if state is None:
        state = init(config, trial, examples)
    done = int(state.epoch)
    steps = done * train.steps_per_epoch(config, examples)
    folder.cut(steps)
    tracker = tracked(options, folder, steps)
    with contextlib.closing(tracker), progress.report(config.epochs, done) as report:
        for number in range(done + 1, config.epochs + 1):
            state, history = epoch(config, trial, examples, state)
            history = jax.device_get(history)
            folder.append(number, history)
            trackers.log_epoch(tracker, number, history)
            folder.save(state)
            report(number, history)
    metrics = folder.metrics()
    curves.draw(metrics, title(options), folder.folder / "curves.png")
    result = {
        "accuracy": float(metrics.score[-1]),
        "clip_rate": float(np.mean(metrics.clipped > 0)),
        "norm_median": float(np.median(metrics.norm)),
        "norm_max": float(np.max(metrics.norm)),
        "steps": len(metrics.loss),
        "seconds": round(time.perf_counter() - start, 3),
        "parameters_sha256": runs.fingerprint(state.params),
    }
    return folder.finish(result)


def tracked(options: RunMnist, folder: runs.Run, steps: int) -> trackers.Tracker:
    """Returns what is told of every step besides the folder, which has seen `steps` of them."""
    asked: list[trackers.Tracker] = []
    if options.tensorboard:
        asked.append(trackers.TensorBoard(folder.folder / "tensorboard", steps))
    if options.wandb is not None:
        name = title(options)
        asked.append(trackers.WeightsAndBiases(options.wandb, name, folder.config, folder.folder))
    return trackers.Several(asked)


def conclusion(result: dict[str, Any]) -> str:
    """Returns the line that a run ends with."""
    median, largest = (
        "not finite" if result[name] is None else f"{result[name]:.3f}"
        for name in ("norm_median", "norm_max")
    )
    return (
        f"Accuracy: {100 * result['accuracy']:.2f} %  "
        f"(clip rate {100 * result['clip_rate']:.1f} %, norm: median {median}, maximum {largest})"
    )


def one_line(error: BaseException) -> str:
    """Returns the message of an error without its line breaks."""
    return " ".join(str(error).split())
