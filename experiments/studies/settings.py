"""Settings of the studies: a task, and the circumstances in which clips may differ."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.studies import stress
from experiments.tasks.cartpole import CartPole
from experiments.tasks.char_lm import GPT, CharLm
from experiments.tasks.mnist import Mnist
from experiments.tasks.residual import Residual
from experiments.tasks.temporal_order import TemporalOrder
from experiments.training.config import Batch, Config, Params, Task
from experiments.training.data import Data, hold_out

Folders = Mapping[str, Path]
HELD_OUT = 0.1  # of the training examples


@dataclasses.dataclass(frozen=True)
class RateSchedule:
    """How the learning rate of a setting goes, as arguments of `trial`.

    Attributes:
        warm_up: the share of the steps in which it rises to its peak.
        last_rate: the share of the peak that it falls to, on half a cosine wave.
    """

    warm_up: float = 0.0
    last_rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """A task and all of its training but the clip.

    Attributes:
        name: its name.
        task: the task.
        norm: about the usual norm of its gradients; grids of limits surround it.
        optimizer: as in `Config`.
        learning_rate: a usual one; boxes of rates surround it.
        batch_size: as in `Config`.
        epochs: as in `Config`.
        rate: how the learning rate goes; None: it stays.
        wrong_labels: the share of the training labels that are made wrong.
        corrupt: as in `Config`.
        disturb: as in `Config`.
        floor: the score of having learned nothing; a training that ends no better has failed.
        scored: what a hundred times the score is, with its unit.
    """

    name: str
    task: Task
    norm: float
    optimizer: Callable[[jax.Array], optax.GradientTransformation] = optax.sgd
    learning_rate: float = 0.1
    batch_size: int = 100
    epochs: int = 2
    rate: RateSchedule | None = None
    wrong_labels: float = 0.0
    corrupt: Callable[[jax.Array, Batch], Batch] | None = None
    disturb: Callable[[jax.Array, jax.Array, Params], Params] | None = None
    floor: float = 0.15
    scored: str = "accuracy, %"

    def config(self, clip: Callable[[Any], optax.GradientTransformation], **changes: Any) -> Config:
        """Returns its training with a clip; `changes` are fields of `Config`."""
        shared = {
            field: getattr(self, field)
            for field in ("task", "optimizer", "batch_size", "epochs", "corrupt", "disturb")
        }
        shared["rate_schedule"] = self.rate is not None
        return Config(clip=clip, **{**shared, **changes})

    @property
    def numbers(self) -> dict[str, Any]:
        """Its own arguments of `trial`, besides the learning rate."""
        return {} if self.rate is None else dataclasses.asdict(self.rate)

    def data(self, folders: Folders) -> Data:
        """Returns the data, with a tenth of the training examples held out for validation.

        Args:
            folders: the original files of data sets.
        """
        folder = folders.get(getattr(self.task, "dataset", ""))
        data = hold_out(self.task.data(folder), HELD_OUT)
        return stress.wrong_labels(data, self.wrong_labels) if self.wrong_labels else data


MNIST = Setting("mnist", Mnist(), norm=1.0)
DEEP = Setting("mnist_deep", Mnist(hidden=(32,) * 12), norm=1.0, learning_rate=0.3)
LANGUAGE = Setting(
    "char_lm",
    CharLm(),
    norm=1.0,
    optimizer=functools.partial(optax.adamw, b2=0.95, weight_decay=0.1),
    learning_rate=0.003,
    batch_size=16,
    rate=RateSchedule(warm_up=0.1, last_rate=0.1),
    # The commonest character is a space, 19 %.
    floor=0.25,
)
SETTINGS = {
    setting.name: setting
    for setting in (
        MNIST,
        DEEP,
        dataclasses.replace(MNIST, name="mnist_high_learning_rate", learning_rate=2.0),
        dataclasses.replace(MNIST, name="mnist_bfloat16", task=Mnist(precision="bfloat16")),
        dataclasses.replace(MNIST, name="mnist_wrong_labels", wrong_labels=0.4),
        dataclasses.replace(
            MNIST, name="mnist_bad_batches", corrupt=stress.BadBatches(every=50, factor=100.0)
        ),
        dataclasses.replace(
            MNIST, name="mnist_huge_examples", corrupt=stress.HugeExamples(count=2, factor=100.0)
        ),
        dataclasses.replace(
            MNIST, name="mnist_heavy_tails", disturb=stress.HeavyTails(scale=0.01, degrees=1.5)
        ),
        Setting("fashion_mnist", Mnist(dataset="fashion_mnist"), norm=1.0),
        Setting(
            "fashion_residual",
            Residual(),
            norm=1.0,
            optimizer=functools.partial(optax.sgd, momentum=0.9),
            learning_rate=0.05,
            epochs=1,
            rate=RateSchedule(last_rate=0.0),
        ),
        Setting("temporal_order", TemporalOrder(), norm=0.3, batch_size=20, epochs=4),
        # Where nothing is learned, the pole stays up for some 10 of 500 steps.
        Setting(
            "cartpole", CartPole(), 0.5, optax.adam, learning_rate=0.003, batch_size=16, floor=0.06
        ),
        LANGUAGE,
        dataclasses.replace(LANGUAGE, name="char_lm_bfloat16", task=CharLm(precision="bfloat16")),
    )
}

# Settings that take too long for what has all of them: a study asks for these by name.
LARGE = {
    setting.name: setting
    for setting in (
        dataclasses.replace(LANGUAGE, name="gpt", task=GPT),
        dataclasses.replace(
            LANGUAGE, name="gpt_bfloat16", task=dataclasses.replace(GPT, precision="bfloat16")
        ),
    )
}
