"""What a user types, and the `Config` and `Trial` that it means."""

import dataclasses
import functools
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import optax
import tyro

from experiments.config import Config, Trial, trial
from experiments.errors import BadInput
from experiments.tasks.mnist import Mnist
from experiments.typed import Clip, Limit, constant, read_limit

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
}


# Options that say where a run is, not what it is: a resumed run may have others.
PLACES = ("platform", "mnist_dir", "out", "resume", "tensorboard", "wandb")


@dataclasses.dataclass(frozen=True)
class RunMnist:
    """Train an MLP on MNIST with a clipped optimizer, and keep all that came out in a new folder.

    The defaults train a network 784-128-10 by SGD for ten epochs, its gradients clipped to norm 1.

    Attributes:
        clip: Any named method of jaxclip, with arguments where it takes some, as in
            'adaptive_grad_clip(0.02, eps=1e-3)'. A name that is not known lists them all.
        limit: The limit, where the method takes one. A number, or a schedule over the whole
            training, from its first value to its last one, linear:1.0:0.1, cosine:1.0:0.1 or
            step:1.0:0.1. A third number is the share of the steps that it takes to get there, as
            in step:1.0:0.1:0.75. By default it takes all of them, and a step half of them. Without
            this option the limit is the method's own default, or else 1.0.
        clip_last: Clip what the optimizer makes of the gradient, rather than the gradient. It is
            the place for clip_weights and for methods that bound the update.
        optimizer: The optimizer; momentum is SGD with momentum 0.9.
        learning_rate: The learning rate; 0.001 suits adam and adamw.
        batch_size: How many examples a step takes. What does not fill a batch is left out of the
            epoch.
        epochs: How often the training images are gone through, each time in another order.
        hidden: The widths of the hidden layers, as in --hidden 256 128.
        precision: The type that the layers compute in. The parameters stay float32.
        seed: Decides the first parameters and the order of the examples.
        dataset: What to learn. MNIST comes with the repository; Fashion-MNIST is downloaded.
        platform: Where to compute. By default where JAX likes best.
        mnist_dir: The folder with the four original files of the data set, if not the repository's
            own.
        out: The folder of this run, which has to be new. By default runs/DATE-TASK-CLIP.
        resume: Continue the run in this folder, with its options. It ends as if it had never
            stopped.
        tensorboard: Write event files for TensorBoard into the folder of the run too.
        wandb: Tell Weights & Biases too, in this project.
    """

    clip: Annotated[str, tyro.conf.arg(metavar="METHOD")] = "clip_by_global_norm"
    limit: Annotated[str | None, tyro.conf.arg(metavar="LIMIT")] = None
    clip_last: bool = False
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.01
    batch_size: int = 100
    epochs: int = 10
    hidden: tuple[int, ...] = (128,)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    dataset: Literal["mnist", "fashion_mnist"] = "mnist"
    platform: Annotated[
        Literal["cpu", "gpu", "tpu"] | None, tyro.conf.arg(metavar="{cpu,gpu,tpu}")
    ] = None
    mnist_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    tensorboard: bool = False
    wandb: Annotated[str | None, tyro.conf.arg(metavar="PROJECT")] = None

    def config(self) -> Config:
        """Returns what decides the code of the training."""
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise BadInput(f"{flag(name)} is {getattr(self, name)}: give 1 or more")
        if min(self.hidden, default=1) < 1:
            raise BadInput(f"--hidden is {self.hidden}: give widths of 1 or more")
        return Config(
            task=Mnist(self.hidden, self.precision, dataset=self.dataset),
            clip=self.named_clip(),
            optimizer=OPTIMIZERS[self.optimizer],
            schedule=self.named_limit().shape,
            clip_last=self.clip_last,
            batch_size=self.batch_size,
            epochs=self.epochs,
        )

    def check(self) -> None:
        """Raises `BadInput` for values that no training can have."""
        self.config()
        self.trial()

    def trial(self) -> Trial:
        """Returns the numbers of the training."""
        if not 0 <= self.learning_rate < math.inf:
            raise BadInput(f"--learning-rate is {self.learning_rate}: give a number of 0 or more")
        if not -(2**31) <= self.seed < 2**31:
            raise BadInput(f"--seed is {self.seed}: give a number of 32 bits")
        limit = self.named_limit()
        return trial(self.seed, self.learning_rate, limit.first, limit.last, limit.by)

    def spelled_out(self) -> dict[str, Any]:
        """Returns the options that decide what a run is, as JSON has them, defaults included."""
        kept = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in PLACES
        }
        clip = Clip(self.clip)
        limit = self.limit
        if limit is None and clip.limit_name is not None and clip.limit_name not in clip.arguments:
            limit = str(clip.own_limit)
        return {"task": "mnist", **kept, "hidden": list(self.hidden), "limit": limit}

    def named_clip(self) -> Clip:
        """Returns the clip of this run, tried at both ends of its limit."""
        clip = Clip(self.clip)
        limit = self.named_limit()
        for value in (limit.first, limit.last):
            try:
                clip(value)
            except BadInput:
                raise
            except (TypeError, ValueError) as error:
                raise BadInput(f"--clip {clip.text}: {error}") from error
        return clip

    def named_limit(self) -> Limit:
        """Returns the limit of this run."""
        clip = Clip(self.clip)
        if self.limit is None:
            return constant(clip.own_limit)
        if clip.limit_name is None:
            raise BadInput(
                f"--limit {self.limit}: {clip.name} takes no limit; what it does take is "
                f"{clip.name}{clip.signature}"
            )
        if clip.limit_name in clip.arguments:
            raise BadInput(
                f"the limit is given twice, by --clip {clip.text} and by --limit {self.limit}: "
                f"give it once"
            )
        return read_limit(self.limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where to compute, and where the data is.

    Attributes:
        platform: Where to compute. By default where JAX likes best.
        mnist_dir: The folder with the original files of MNIST, if not the repository's own.
        fashion_mnist_dir: The folder with those of Fashion-MNIST, if it is not to be downloaded.
    """

    platform: Annotated[
        Literal["cpu", "gpu", "tpu"] | None, tyro.conf.arg(metavar="{cpu,gpu,tpu}")
    ] = None
    mnist_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    fashion_mnist_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None

    @property
    def folders(self) -> dict[str, Path]:
        """Where the original files of the data sets are."""
        named = {"mnist": self.mnist_dir, "fashion_mnist": self.fashion_mnist_dir}
        return {name: folder for name, folder in named.items() if folder is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Places):
    """Answer a question by training every side of it, and write the answer as a page.

    A comparison that was stopped is continued by the same command: it does only what is missing.

    Attributes:
        study: What to ask; schedules, methods, sensitivity, spikes, temporal_order, placement or
            per_example.
        full: Train the full form, with more of everything, rather than the quick one.
        out: The folder of the study. By default runs/STUDY-quick or runs/STUDY-full.
        settings: Only on these settings of it, such as mnist_deep, where the study has several.
        chunk: How many trainings run side by side.
        coordinator: HOST:PORT of the first process, where several processes work together; each
            is started with the same command and a number of its own.
        processes: How many processes there are.
        process: The number of this one, from 0.
    """

    study: tyro.conf.Positional[str]
    full: bool = False
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    settings: tuple[str, ...] = ()
    chunk: int = 64
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    processes: int = 1
    process: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pilot(Places):
    """Measure the norms of a task's gradients without a clip, and suggest a limit for each method.

    Attributes:
        task: What to train; a setting of the studies, such as mnist or char_lm.
        seed: Decides the first parameters and the order of the examples.
        epochs: How long. By default as long as the studies do.
        learning_rate: The learning rate. By default that of the studies.
    """

    task: tyro.conf.Positional[str]
    seed: int = 0
    epochs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    learning_rate: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the page of a study or a run anew: HTML, figures as PNG and SVG, tables as CSV.

    Attributes:
        folder: What to report on; the folder of a study or of a run.
        open: Show the page in a browser.
        out: Where to write. By default into that folder.
    """

    folder: tyro.conf.Positional[Path]
    open: bool = False
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None


def continuation(options: Any, task: str, folder: Path) -> str:
    """Returns the command that continues the run in `folder`.

    Args:
        options: those that it was started with; the folder has all but the places.
        task: the name of its command.
        folder: the folder of the run.
    """
    places = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name in PLACES and getattr(options, field.name) != field.default
    }
    words = [sys.executable, "-m", "experiments", "run", task]
    for name, value in {**places, "out": None, "resume": folder}.items():
        if value is not None:
            words += [flag(name)] if value is True else [flag(name), str(value)]
    return shlex.join(words)


def flag(field: str) -> str:
    """Returns how a field is spelled on the command line."""
    return f"--{field.replace('_', '-')}"
