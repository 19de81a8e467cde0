import functools

import jax
import numpy as np
from scipy import special

import jaxclip
from experiments.compression.distillation import Distilled, distillation_loss, teach
from experiments.tasks.mnist import Mnist
from experiments.training import train
from experiments.training.config import Config, trial

RNG = np.random.default_rng(0)
LOGITS, TEACHER = RNG.normal(0, 3, (2, 7, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 7).astype(np.uint8)


def reference(temperature, weight):
    hard = -special.log_softmax(LOGITS.astype(float), -1)[np.arange(7), LABELS]
    soft = special.rel_entr(
        special.softmax(TEACHER.astype(float) / temperature, -1),
        special.softmax(LOGITS.astype(float) / temperature, -1),
    ).sum(-1)
    return np.mean((1 - weight) * hard + weight * temperature**2 * soft)


def test_the_loss_is_that_of_the_equation():
    for temperature in (1.0, 4.0, 20.0):
        for weight in (0.0, 0.5, 1.0):
            found = distillation_loss(LOGITS, LABELS, TEACHER, temperature, weight)
            np.testing.assert_allclose(found, reference(temperature, weight), rtol=2e-5)


def test_hot_and_soft_gradients_are_as_large_as_cold_ones():
    """Why the loss has the factor T^2: its gradients go with 1 / T^2."""
    slope = jax.grad(distillation_loss)
    hot, hotter = (np.abs(slope(LOGITS, LABELS, TEACHER, t, 1.0)).max() for t in (50.0, 500.0))
    assert 0.9 < hot / hotter < 1.1


def test_an_extreme_teacher_has_a_finite_loss():
    extreme = np.where(TEACHER > 0, 1e30, -1e30).astype(np.float32)
    value, slope = jax.value_and_grad(distillation_loss)(LOGITS, LABELS, extreme, 2.0, 0.5)
    assert np.isfinite(value) and np.all(np.isfinite(slope))


def test_a_student_learns_what_only_its_teacher_knows(tiny):
    """The labels are of no use; the teacher knows the classes."""
    right = tiny.train.labels.astype(int)

    def knows(images):
        rows = [np.flatnonzero((tiny.train.images == one).all((1, 2, 3)))[0] for one in images]
        return 8.0 * np.eye(10, dtype=np.float32)[right[rows]]

    blind = tiny._replace(train=tiny.train._replace(labels=np.zeros_like(tiny.train.labels)))
    task = Distilled(Mnist((16,)), functools.partial(teach, logits=knows, batch=64))
    data = task.teach(blind)
    np.testing.assert_array_equal(data.train.logits.argmax(1), right)
    config = Config(task, jaxclip.clip_by_global_norm, batch_size=20, epochs=3)
    history = jax.jit(functools.partial(train.train, config))(
        trial(learning_rate=0.3, **{"task.temperature": 2.0, "task.weight": 1.0}), data
    )
    assert history.score[-1] > 0.8
    assert task.dataset == "mnist"
