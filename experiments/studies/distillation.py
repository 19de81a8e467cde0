"""A small network that learns from a large one, with and without a clip in either."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import optax

import jaxclip
from experiments.compression.distillation import Distilled, teach
from experiments.compression.weights import count, nbytes
from experiments.pages.report import Column, Table
from experiments.studies import probes
from experiments.studies.arms import NO_CLIP, Arm, Range
from experiments.studies.compression import STUDY as COMPRESSION
from experiments.studies.effects import by_setting
from experiments.studies.search import Finding
from experiments.studies.settings import HELD_OUT, Setting
from experiments.studies.study import Study
from experiments.tasks.mnist import Mnist
from experiments.tasks.trained import trained
from experiments.training.config import Config, Task, trial
from experiments.training.data import Data, hold_out

TEACHER = Mnist((1200, 1200))
MOMENTUM = functools.partial(optax.sgd, momentum=0.9)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The network 784-1200-1200-10, which has not seen the examples that are held out.

    Attributes:
        epochs: passes over the training data.
        limit: of the global norm of its gradients; infinity is no clip.
    """

    epochs: int
    limit: float = math.inf

    def __call__(self, data: Data) -> Data:
        """Returns the data with its logits."""
        config = Config(
            TEACHER, jaxclip.clip_by_global_norm, MOMENTUM, rate_schedule=True, epochs=self.epochs
        )
        numbers = trial(learning_rate=0.05, limit=self.limit, warm_up=0.05, last_rate=0.01)
        params = trained("teacher", config, numbers, hold_out(data, HELD_OUT))
        return teach(data, functools.partial(jax.jit(TEACHER.logits), params))


def arms(full: bool) -> Sequence[Arm]:
    """Returns students alone and distilled, with and without a clip, of either teacher."""
    epochs = 10 if full else 1
    teachers = {"": Teacher(epochs)}
    if full:
        teachers[", clipped teacher"] = Teacher(epochs, limit=1.0)
    return [
        arm
        for hidden in ((128, 32) if full else (32,))
        for name, teacher in teachers.items()
        for arm in of_student(
            Setting(
                f"784-{hidden}-10{name}",
                Distilled(Mnist((hidden,)), teacher),
                norm=1.0,
                optimizer=MOMENTUM,
                learning_rate=0.03,
                epochs=epochs,
            )
        )
    ]


def of_student(setting: Setting) -> list[Arm]:
    """Returns the arms of a student: one program, as a weight of 0 is a student alone."""
    make = probes.clips(probes.training(setting), setting)
    limit, alone = probes.limits(setting), {"task.weight": 0.0, "task.temperature": 1.0}
    taught = {
        "task.weight": Range(0.1, 1.0, log=False, most=1.0),
        "task.temperature": Range(1.0, 20.0, least=0.1),
    }
    return [
        make(NO_CLIP, against="", **alone),
        make("gradient clip", limit=limit, **alone),
        make("distilled", **taught),
        make("distilled, gradient clip", limit=limit, against="distilled", **taught),
    ]


def tables(findings: Sequence[Finding]) -> Sequence[Table]:
    """Returns the sizes of the students and of the teacher."""
    columns = [Column("network"), Column("parameters", "{:d}"), Column("KiB", "{:.0f}")]
    columns.append(Column("accuracy, %"))
    rows = [size_row("784-1200-1200-10, the teacher", TEACHER, "")]
    for setting, here in by_setting(findings).items():
        scores = ", ".join(f"{one.arm.name} {100 * one.chosen.mean:.2f}" for one in here)
        rows.append(size_row(setting, here[0].arm.setting.task, scores))
    return [Table("sizes", "Size and accuracy", columns, rows)]


def size_row(name: str, task: Task, scores: str) -> list[str | float | int | None]:
    """Returns the row of a network."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    return [name, count(params), nbytes(params) / 1024, scores or None]


STUDY = Study(
    name="distillation",
    question="Does distillation make a small network better, and does a clip in teacher or student "
    "matter to it?",
    arms=arms,
    tables=tables,
    full=COMPRESSION.full,
    quick=COMPRESSION.quick,
)
