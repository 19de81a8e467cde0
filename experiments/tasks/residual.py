"""Clothes, by a small residual network with normalization."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.tasks.mnist import CLASSES, Pictures
from experiments.tasks.mnist_cnn import patches


class Block(nnx.Module):
    """Normalization, ReLU and a convolution of 3 x 3, twice, beside what goes around them."""

    def __init__(self, width: int, groups: int, rngs: nnx.Rngs):
        norm, linear = nnx.GroupNorm, nnx.Linear
        self.norms = nnx.List(norm(width, num_groups=groups, rngs=rngs) for _ in range(2))
        self.layers = nnx.List(linear(9 * width, width, rngs=rngs) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the states f32[batch, side, side, width] after the block."""
        way = x
        for norm, layer in zip(self.norms, self.layers, strict=True):
            around = jnp.pad(nnx.relu(norm(way)), ((0, 0), (1, 1), (1, 1), (0, 0)))
            way = layer(patches(around, size=3, stride=1))
        return x + way


class ResidualNetwork(nnx.Module):
    """Squares of 4 x 4 pixels as states, blocks, and the mean over all places.

    It normalizes by groups (Wu & He 2018, arXiv 1803.08494) and before the layers (He et al. 2016,
    arXiv 1603.05027): statistics of the batch would be a state beside the parameters.
    """

    def __init__(self, width: int, blocks: int, groups: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(4 * 4, width, rngs=rngs)
        self.blocks = nnx.List(Block(width, groups, rngs) for _ in range(blocks))
        self.norm = nnx.GroupNorm(width, num_groups=groups, rngs=rngs)
        self.output = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, classes] of the images f32[batch, 28, 28, 1]."""
        x = self.first(patches(x, size=4, stride=4))
        for block in self.blocks:
            x = block(x)
        return self.output(nnx.relu(self.norm(x)).mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class Residual(Pictures):
    """Pictures by the residual network.

    Attributes:
        width: of the states.
        blocks: how many; each has two layers.
        groups: that the states are normalized in.
    """

    dataset: Literal["mnist", "fashion_mnist"] = "fashion_mnist"
    width: int = 32
    blocks: int = 4
    groups: int = 4

    def model(self, rngs: nnx.Rngs) -> ResidualNetwork:
        """Returns the network with new parameters."""
        return ResidualNetwork(self.width, self.blocks, self.groups, rngs)
