"""Digits by a deep network of narrow layers, in which gradients vanish or explode."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

import jaxclip
from experiments.tasks.mnist import CLASSES, PIXELS, Pictures
from experiments.training.config import Params

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {"relu": nnx.relu, "tanh": jnp.tanh}
Activation = Literal["relu", "tanh"]


class Deep(nnx.Module):
    """Layers of one width, each with an activation, perhaps normalized, perhaps added to its input.

    The kernels have the initialization at which the size of activations stays what it is, He's for
    ReLU and Glorot's for tanh, times `gain`.
    """

    def __init__(self, task: "DeepMnist", rngs: nnx.Rngs):
        variance = 2.0 if task.activation == "relu" else 1.0
        init = nnx.initializers.variance_scaling(variance * task.gain**2, "fan_in", "normal")
        width = task.width
        self.task = task
        self.first = nnx.Linear(PIXELS, width, rngs=rngs)
        self.layers = nnx.List(
            nnx.Linear(width, width, kernel_init=init, rngs=rngs) for _ in range(task.depth)
        )
        self.norms = nnx.List(
            nnx.LayerNorm(width, rngs=rngs) for _ in range(task.depth if task.normalized else 0)
        )
        self.output = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits f32[batch, classes] of f32[batch, ...]."""
        activation = ACTIVATIONS[self.task.activation]
        x = activation(self.first(x.reshape(x.shape[0], -1)))
        for index, layer in enumerate(self.layers):
            inputs = self.norms[index](x) if self.task.normalized else x
            outputs = activation(layer(inputs))
            x = x + outputs if self.task.residual else outputs
        return self.output(x)


@dataclasses.dataclass(frozen=True)
class DeepMnist(Pictures):
    """Pictures by a deep network.

    Attributes:
        depth: how many layers there are between the first and the last one.
        activation: of every layer.
        residual: whether the input of a layer is added to its output.
        normalized: whether the input of a layer is normalized.
        gain: the factor of the initial weights; above 1 gradients explode, below they vanish.
        width: of the layers.
    """

    depth: int = 20
    activation: Activation = "relu"
    residual: bool = False
    normalized: bool = False
    gain: float = 1.0
    width: int = 32

    def model(self, rngs: nnx.Rngs) -> Deep:
        """Returns the network with new parameters."""
        return Deep(self, rngs)


def layer_norms(gradient: Params) -> jax.Array:
    """Returns the norms f32[depth] of the gradients of the layers, the first one first."""
    layers = gradient["layers"]
    return jnp.stack([jaxclip.global_norm(layers[index]) for index in sorted(layers)])
