"""Distillation: a small network learns from the logits of a large one."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tasks.mnist import Pictures
from experiments.training.config import Params
from experiments.training.data import Data


class Taught(NamedTuple):
    """Labeled images, and the logits f32[n, classes] that a teacher gives them."""

    examples: Any
    logits: Any


@dataclasses.dataclass(frozen=True)
class Distilled:
    r"""A task whose training examples have the logits of a teacher.

    $$(1 - w)\, H(y, p(z)) + w\, T^2\, D_{KL}(p(z_t / T) \,\|\, p(z / T))$$

    $T$ and $w$ are numbers of a `Trial`, `task.temperature` and `task.weight`.

    Attributes:
        student: the task, whose network is trained.
        teach: returns the data of the task with the logits of the teacher beside the training
            examples, given the original data.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
    """

    student: Pictures
    teach: Callable[[Data], Data]

    @property
    def dataset(self) -> str:
        """The data set of the student."""
        return self.student.dataset

    def data(self, folder: Any = None) -> Data:
        """Returns the data with the teacher's logits."""
        return self.teach(self.student.data(folder))

    def init(self, key: jax.Array) -> Params:
        """Returns new parameters of the student."""
        return self.student.init(key)

    def loss(
        self,
        params: Params,
        batch: Taught,
        temperature: float | jax.Array = 4.0,
        weight: float | jax.Array = 0.9,
    ) -> jax.Array:
        """Returns the mean loss f32[] of a batch."""
        labels, logits = batch.examples.labels, self.student.logits(params, batch.examples.images)
        return distillation_loss(logits, labels, batch.logits, temperature, weight)

    def score(self, params: Params, test: Any) -> jax.Array:
        """Returns the accuracy f32[] of the student; what the teacher says does not count."""
        return self.student.score(params, getattr(test, "examples", test))


def distillation_loss(
    logits: jax.Array,
    labels: jax.Array,
    teacher: jax.Array,
    temperature: float | jax.Array,
    weight: float | jax.Array,
) -> jax.Array:
    """Returns the loss f32[] of `Distilled`, the mean over a batch."""
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))
    soft = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(logits / temperature), jax.nn.log_softmax(teacher / temperature)
    )
    return jnp.mean((1 - weight) * hard + weight * temperature**2 * soft)


def teach(data: Data, logits: Callable[[Any], jax.Array], batch: int = 1000) -> Data:
    """Returns the data with the logits of a teacher beside every training example.

    Args:
        data: labeled images.
        logits: the teacher: logits f32[n, classes] of images u8[n, 28, 28, 1].
        batch: how many images it sees at a time.
    """
    images = data.train.images
    parts = [np.asarray(logits(images[at : at + batch])) for at in range(0, len(images), batch)]
    return data._replace(train=Taught(data.train, np.concatenate(parts)))
