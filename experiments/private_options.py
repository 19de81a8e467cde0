"""What a user types for a private training."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.errors import BadInput
from experiments.options import PLACES, flag


@dataclasses.dataclass(frozen=True)
class RunPrivate:
    """Train a CNN on MNIST so that its parameters are (epsilon, delta)-differentially private.

    Every example's gradient is clipped by jaxclip, the noise is that of jax-privacy, and how much
    of it is needed is computed by dp-accounting: pip install 'jaxclip[privacy]'.

    Attributes:
        epsilon: How private; 2 and 8 are common. Less is more private, and takes more noise.
        delta: How private; less than one over the number of examples.
        limit: The limit of the norm of an example's gradient.
        batch_size: The expected number of examples in a batch; the real one is random.
        epochs: How often every example is expected to be seen.
        learning_rate: Of SGD with momentum 0.9.
        seed: Decides the first parameters, the batches and the noise. Who knows it knows the noise.
        platform: Where to compute. By default where JAX likes best.
        mnist_dir: The folder with the four original files of MNIST, if not the repository's own.
        out: The folder of this run, which has to be new. By default runs/DATE-TASK.
        resume: Continue the run in this folder, with its options. It ends as if it had never
            stopped.
    """

    epsilon: float = 2.0
    delta: float = 1e-5
    limit: float = 0.1
    batch_size: int = 2048
    epochs: int = 20
    learning_rate: float = 8.0
    seed: int = 0
    platform: Annotated[
        Literal["cpu", "gpu", "tpu"] | None, tyro.conf.arg(metavar="{cpu,gpu,tpu}")
    ] = None
    mnist_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None

    def check(self) -> None:
        """Raises `BadInput` for what means no training."""
        if not 0 < self.delta < 1:
            raise BadInput(f"--delta is {self.delta}: give a probability between 0 and 1")
        for name in ("epsilon", "limit", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{flag(name)} is {getattr(self, name)}: give a number above 0")
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise BadInput(f"{flag(name)} is {getattr(self, name)}: give 1 or more")
        if not -(2**31) <= self.seed < 2**31:
            raise BadInput(f"--seed is {self.seed}: give a number of 32 bits")

    def spelled_out(self) -> dict[str, Any]:
        """Returns the options that decide what a run is, as JSON has them, defaults included."""
        kept = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in PLACES
        }
        return {"task": "mnist-private", **kept}
