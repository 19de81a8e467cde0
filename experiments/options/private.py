"""The options of a private run."""

import dataclasses
from typing import ClassVar

from experiments.errors import BadInput
from experiments.options.checks import check_count, check_positive, check_seed, flag
from experiments.options.run import Run
from experiments.runs import private
from experiments.runs.run import Job, check_batch_size
from experiments.tasks.mnist_cnn import MnistCnn
from experiments.training import train
from experiments.training.config import trial


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPrivate(Run):
    """Train a CNN on MNIST so that its parameters are (epsilon, delta)-differentially private.

    jaxclip clips the gradient of every example, jax-privacy adds the noise, and dp-accounting
    computes how much: pip install 'jaxclip[privacy]'.

    Attributes:
        epsilon: The privacy budget; 2 and 8 are common. Less is more private, and takes more noise.
        delta: The probability that the budget does not hold; less than one over the number of
            examples.
        limit: The limit of the norm of an example's gradient.
        batch_size: The expected number of examples in a batch; the real one is random.
        epochs: The expected number of times that each example is seen.
        learning_rate: Of SGD with momentum 0.9.
        seed: Decides the initial parameters, the batches and the noise. Anyone with the seed can
            reproduce the noise.
    """

    task: ClassVar[str] = "mnist-private"

    epsilon: float = 2.0
    delta: float = 1e-5
    limit: float = 0.1
    batch_size: int = 2048
    epochs: int = 20
    learning_rate: float = 8.0
    seed: int = 0

    def check(self) -> None:
        """Raises `BadInput` for values that no training can have."""
        if not 0 < self.delta < 1:
            raise BadInput(f"{flag('delta')} is {self.delta}: give a probability between 0 and 1")
        for name in ("epsilon", "limit", "learning_rate"):
            check_positive(name, getattr(self, name))
        for name in ("batch_size", "epochs"):
            check_count(name, getattr(self, name))
        check_seed(self.seed)

    def job(self) -> Job:
        """Returns the training, with the noise that its budget takes."""
        for module in ("jax_privacy", "dp_accounting"):
            private.import_privacy(module)
        task = MnistCnn()
        data = task.data(self.mnist_dir)
        examples = train.example_count(data)
        check_batch_size(self.batch_size, examples)
        privacy = private.account(self.epsilon, self.delta, self.batch_size, self.epochs, examples)
        steps = self.epochs * (examples // self.batch_size)
        print(
            f"(epsilon {self.epsilon:g}, delta {self.delta:g}) takes noise of "
            f"{privacy['noise_multiplier']:.3f} limits in each of {steps} steps."
        )
        return Job(
            title=f"{self.task} epsilon {self.epsilon:g}",
            identity=self.identity(),
            config=private.private_config(task, privacy, self.limit, self.batch_size, self.epochs),
            trial=trial(self.seed, self.learning_rate, self.limit),
            data=data,
            packages=private.PACKAGES,
            privacy=privacy,
        )
