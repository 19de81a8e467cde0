"""The options of a run, and the training that they describe."""

import abc
import contextlib
import dataclasses
import functools
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import optax
import tyro

from experiments import files
from experiments.errors import BadInput
from experiments.options.checks import (
    check_count,
    check_learning_rate,
    check_positive,
    check_seed,
    flag,
)
from experiments.options.clip import Clip, Limit, constant_limit, read_limit
from experiments.options.places import Coordinator, Folder, Platform, command_line
from experiments.processes import Processes, join
from experiments.runs.folder import open_run
from experiments.runs.run import Job, Place, run
from experiments.runs.stopping import EarlyStopping
from experiments.tasks.mnist import Mnist
from experiments.training.config import Config, Trial, trial

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(abc.ABC):
    """Where a run computes, leaves its files and is logged: these options do not decide its bits.

    Attributes:
        platform: Where to compute. Default: JAX's choice.
        mnist_dir: The folder with the four original files of the data set. Default: the
            repository's own.
        out: The folder of this run, which has to be new. Default: runs/DATE-TASK-CLIP.
        resume: Continue the run in this folder, with its options. It ends as if it had never
            stopped.
        tensorboard: Also write event files for TensorBoard into the folder of the run.
        wandb: Also log to this Weights & Biases project.
        coordinator: HOST:PORT of the first process, where several share every batch; each is
            started with the same command and a number of its own. With auto, JAX finds the
            processes of a cluster by itself.
        processes: The number of processes.
        process: The number of this one, from 0.
    """

    task: ClassVar[str]

    platform: Platform = None
    mnist_dir: Folder = None
    out: Folder = None
    resume: Folder = None
    tensorboard: bool = False
    wandb: Annotated[str | None, tyro.conf.arg(metavar="PROJECT")] = None
    coordinator: Coordinator = None
    processes: int = 1
    process: int = 0

    @abc.abstractmethod
    def check(self) -> None:
        """Raises `BadInput` for values that no training can have."""

    @abc.abstractmethod
    def job(self) -> Job:
        """Returns the training."""

    def carry_out(self, command: str) -> None:
        """Trains, and prints how it went."""
        self.check()
        run(self.job(), self.place(command))

    def join(self) -> contextlib.AbstractContextManager[None]:
        """Joins this process to the others, before anything is computed."""
        return join(Processes(self.coordinator, self.processes, self.process), self.platform)

    def place(self, command: str = "") -> Place:
        """Returns where the run leaves its files, and where it is logged."""
        return Place(
            out=self.out,
            resume=self.resume,
            tensorboard=self.tensorboard,
            wandb=self.wandb,
            command=command,
            again=self.continuation,
        )

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide a run's bits, as JSON values, defaults included."""
        kept = {name: getattr(self, name) for name in self.identity_fields()}
        plain = {key: list(x) if isinstance(x, tuple) else x for key, x in kept.items()}
        return {"task": self.task, **plain}

    @classmethod
    def identity_fields(cls) -> list[str]:
        """Returns the names of the options that decide a run's bits."""
        return [field.name for field in dataclasses.fields(cls) if field.name not in PLACES]

    def restore_options(self) -> Self:
        """Returns these options with those of the run that they resume.

        Raises:
            BadInput: the folder is not that of such a run, or its `config.json` is damaged.
        """
        assert self.resume is not None
        kept = open_run(self.resume).identity
        path = self.resume / "config.json"
        if kept.get("task") != self.task:
            raise BadInput(f"{path} is that of a run of {kept.get('task')}, not of {self.task}")
        types = typing.get_type_hints(type(self))
        hints = {"task": str, **{name: types[name] for name in self.identity_fields()}}
        with files.read_errors(path, "restore it, or start a new run"):
            files.check_record(kept, hints, hints)
            del kept["task"]
            for name, value in kept.items():
                if isinstance(value, list):
                    kept[name] = tuple(value)
            found = dataclasses.replace(self, **kept)
            found.check()
            return found

    def continuation(self, folder: Path) -> str:
        """Returns the command that continues the run in `folder`."""
        words = ["run", self.task]
        for field in dataclasses.fields(Run):
            value = getattr(self, field.name)
            if field.name not in ("out", "resume") and value != field.default:
                words += [flag(field.name)] if value is True else [flag(field.name), str(value)]
        return command_line([*words, "--resume", str(folder)])


PLACES = frozenset(field.name for field in dataclasses.fields(Run))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunMnist(Run):
    """Train an MLP on MNIST with a clipped optimizer, and keep the results in a new folder.

    The defaults train a network 784-128-10 by SGD for ten epochs, its gradients clipped to norm 1.

    Attributes:
        clip: Any named method of jaxclip, with arguments where it takes some, as in
            'adaptive_grad_clip(0.02, eps=1e-3)'. An unknown name lists them all.
        limit: The limit, where the method takes one: a number, or a schedule over the whole
            training from its first value to its last one, linear:1.0:0.1, cosine:1.0:0.1 or
            step:1.0:0.1. A third number is the share of the steps after which the last value is
            reached, as in step:1.0:0.1:0.75; default: all of them, and half of them for a step.
            Default: the method's own limit, otherwise 1.0.
        clip_last: Clip the update that the optimizer makes, instead of the gradient. It is the
            place for clip_weights and for methods that bound the update.
        optimizer: The optimizer; momentum is SGD with momentum 0.9.
        learning_rate: The learning rate; 0.001 suits adam and adamw.
        batch_size: The number of examples of a step. An incomplete last batch is dropped.
        epochs: Passes over the training data, reshuffled each time.
        until_loss: Stop after the first epoch whose mean training loss is this or less. Schedules
            still go over all epochs.
        patience: Stop after this many epochs without a lower mean training loss.
        hidden: The widths of the hidden layers, as in --hidden 256 128.
        precision: The type that the layers compute in. The parameters stay float32.
        seed: Decides the initial parameters and the order of the examples.
        dataset: The data set. MNIST comes with the repository; Fashion-MNIST is downloaded.
    """

    task: ClassVar[str] = "mnist"

    clip: Annotated[str, tyro.conf.arg(metavar="METHOD")] = "clip_by_global_norm"
    limit: Annotated[str | None, tyro.conf.arg(metavar="LIMIT")] = None
    clip_last: bool = False
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.01
    batch_size: int = 100
    epochs: int = 10
    until_loss: Annotated[float | None, tyro.conf.arg(metavar="LOSS")] = None
    patience: Annotated[int | None, tyro.conf.arg(metavar="EPOCHS")] = None
    hidden: tuple[int, ...] = (128,)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    dataset: Literal["mnist", "fashion_mnist"] = "mnist"

    def check(self) -> None:
        """Raises `BadInput` for values that no training can have."""
        self.config()
        self.trial()
        self.stopping()

    def job(self) -> Job:
        """Returns the training."""
        config = self.config()
        title = " ".join([self.dataset, self.clip, *([self.limit] if self.limit else [])])
        return Job(
            title=title,
            identity=self.identity(),
            config=config,
            trial=self.trial(),
            data=config.task.data(self.mnist_dir),
            stopping=self.stopping(),
        )

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide a run's bits, the method's own limit included."""
        clip = Clip(self.clip)
        limit = self.limit
        if limit is None and clip.limit_name is not None and clip.limit_name not in clip.arguments:
            limit = str(clip.own_limit)
        return {**super().identity(), "limit": limit}

    def config(self) -> Config:
        """Returns the code of the training."""
        check_count("batch_size", self.batch_size)
        check_count("epochs", self.epochs)
        if min(self.hidden, default=1) < 1:
            raise BadInput(f"--hidden is {self.hidden}: give widths of 1 or more")
        return Config(
            task=Mnist(self.hidden, self.precision, dataset=self.dataset),
            clip=self.parse_clip(),
            optimizer=OPTIMIZERS[self.optimizer],
            schedule=self.parse_limit().shape is not None,
            clip_last=self.clip_last,
            batch_size=self.batch_size,
            epochs=self.epochs,
        )

    def trial(self) -> Trial:
        """Returns the numbers of the training."""
        check_learning_rate(self.learning_rate)
        check_seed(self.seed)
        limit = self.parse_limit()
        shape = limit.shape or 0
        numbers = limit.first, limit.last, limit.by
        return trial(self.seed, self.learning_rate, *numbers, shape=shape)

    def stopping(self) -> EarlyStopping:
        """Returns when the run stops before its last epoch."""
        if self.until_loss is not None:
            check_positive("until_loss", self.until_loss)
        if self.patience is not None:
            check_count("patience", self.patience)
        return EarlyStopping(self.until_loss, self.patience)

    def parse_clip(self) -> Clip:
        """Returns the clip of this run, tried at both ends of its limit."""
        clip = Clip(self.clip)
        limit = self.parse_limit()
        for value in (limit.first, limit.last):
            try:
                clip(value)
            except BadInput:
                raise
            except (TypeError, ValueError) as error:
                raise BadInput(f"--clip {clip.text}: {error}") from error
        return clip

    def parse_limit(self) -> Limit:
        """Returns the limit of this run."""
        clip = Clip(self.clip)
        if self.limit is None:
            return constant_limit(clip.own_limit)
        if clip.limit_name is None:
            raise BadInput(
                f"--limit {self.limit}: {clip.name} takes no limit; it takes "
                f"{clip.name}{clip.signature}"
            )
        if clip.limit_name in clip.arguments:
            raise BadInput(
                f"the limit is given twice, by --clip {clip.text} and by --limit {self.limit}: "
                f"give it once"
            )
        return read_limit(self.limit)
