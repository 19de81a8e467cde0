"""Handwritten digits, by a small convolutional network with tanh."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.tasks.mnist import CLASSES, Pictures


class Cnn(nnx.Module):
    """Two convolutions and two linear layers: 22,426 parameters.

    Its tanh bounds the activations, and with them the gradients that have to be clipped. It is the
    network of Papernot, Thakurta, Song, Chien, Erlingsson 2020, arXiv 2007.14191, table 1, with
    larger strides and a smaller second convolution, which takes a third of the work.
    """

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(8 * 8, 16, rngs=rngs)
        self.second = nnx.Linear(3 * 3 * 16, 32, rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 32, 32, rngs=rngs)
        self.output = nnx.Linear(32, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, classes] of the images f32[batch, 28, 28, 1]."""
        return self.output(self.features(x))

    def features(self, x: jax.Array) -> jax.Array:
        """Returns what the last layer sees f32[batch, 32], between -1 and 1."""
        x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
        x = pool(nnx.tanh(self.first(patches(x, size=8, stride=4))))
        x = nnx.tanh(self.second(patches(x, size=3, stride=1)))
        return nnx.tanh(self.hidden(x.reshape(x.shape[0], -1)))


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Returns the squares of f32[batch, side, side, channels], each as one row of numbers.

    A convolution is a product with these.
    """
    last = x.shape[1] - size + 1
    shifts = [(i, j) for i in range(size) for j in range(size)]
    squares = [x[:, i : i + last : stride, j : j + last : stride] for i, j in shifts]
    return jnp.concatenate(squares, -1)


def pool(x: jax.Array) -> jax.Array:
    """Returns the largest of every 2 x 2 neighbors."""
    x = jnp.maximum(x[:, 1:], x[:, :-1])
    return jnp.maximum(x[:, :, 1:], x[:, :, :-1])


@dataclasses.dataclass(frozen=True)
class MnistCnn(Pictures):
    """Pictures by the convolutional network."""

    def model(self, rngs: nnx.Rngs) -> Cnn:
        """Returns the network with new parameters."""
        return Cnn(rngs)
