"""Handwritten digits (or clothes), by a multilayer perceptron."""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.tasks import images as data
from experiments.tasks.images import Images
from experiments.tasks.network import OfNetwork
from experiments.training.config import Params
from experiments.training.data import Data

PIXELS = 28 * 28
CLASSES = 10


class Mlp(nnx.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, widths: tuple[int, ...], dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
        self.layers = nnx.List(
            nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)
            for inputs, outputs in itertools.pairwise(widths)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, classes] of f32[batch, ...]."""
        *hidden, output = self.layers
        x = x.reshape(x.shape[0], -1)  # `len` of a batch of any size is none
        for layer in hidden:
            x = nnx.relu(layer(x))
        return output(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfImages(OfNetwork):
    """A task whose examples are images.

    Attributes:
        dataset: digits or clothes.
    """

    dataset: Literal["mnist", "fashion_mnist"] = "mnist"

    def data(self, folder: Path | None = None) -> Data:
        """Returns the images; `folder` has the original files, if they are not the repository's."""
        return data.load(self.dataset, folder)


class Pictures(OfImages):
    """Softmax cross-entropy of a network of images f32[b, 28, 28, 1], scored by its accuracy."""

    def loss(self, params: Params, batch: Images) -> jax.Array:
        """Returns the mean cross-entropy f32[] of a batch."""
        labels = batch.labels.astype(jnp.int32)
        logits = self.logits(params, batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def score(self, params: Params, test: Images) -> jax.Array:
        """Returns the accuracy f32[] on the test images."""

        def right(example: Images) -> jax.Array:
            [logits] = self.logits(params, example.images[None])
            return logits.argmax() == example.labels.astype(jnp.int32)

        # By the thousand: the activations of all would be the peak of a sweep's memory.
        return jnp.mean(jax.lax.map(right, test, batch_size=1000), dtype=jnp.float32)

    def logits(self, params: Params, images: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, classes] of the images u8[batch, 28, 28, 1]."""
        return self.network(params)(images.astype(jnp.float32) / 255).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Mnist(Pictures):
    """Pictures by a multilayer perceptron.

    Attributes:
        hidden: the widths of the hidden layers.
        precision: the type that the layers compute in; the parameters stay float32.
    """

    hidden: tuple[int, ...] = (128,)
    precision: Literal["float32", "bfloat16"] = "float32"

    def model(self, rngs: nnx.Rngs) -> Mlp:
        """Returns the network with new parameters."""
        return Mlp((PIXELS, *self.hidden, CLASSES), jnp.dtype(self.precision), rngs)
