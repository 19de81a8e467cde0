"""The smallest task that learns, for tests of what trains any task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.data import Data


@dataclasses.dataclass(frozen=True)
class Line:
    """A line through points: two parameters, and an error to be learned away."""

    def init(self, key):
        return {"slope": jax.random.normal(key), "height": jnp.zeros(())}

    def loss(self, params, batch):
        x, y = batch
        return jnp.mean((params["slope"] * x + params["height"] - y) ** 2)

    def score(self, params, test):
        return -self.loss(params, test)


POINTS = np.linspace(-1, 1, 40, dtype=np.float32)
LINE = Data(train=(POINTS, 2 * POINTS + 1), test=(POINTS, 2 * POINTS + 1))
