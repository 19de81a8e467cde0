"""The common part of tasks with a Flax network."""

import abc
import functools
from typing import Any

import jax
from flax import nnx

from experiments.training.config import Params

Network = Any  # an nnx.Module; each task knows its arguments


class OfNetwork(abc.ABC):
    """A task whose parameters are those of an `nnx.Module`, which `model` makes."""

    @abc.abstractmethod
    def model(self, rngs: nnx.Rngs) -> Network:
        """Returns the network with new parameters."""

    def init(self, key: jax.Array) -> Params:
        """Returns new parameters."""
        return nnx.to_pure_dict(nnx.state(self.model(nnx.Rngs(key)), nnx.Param))

    def network(self, params: Params) -> Network:
        """Returns the network with these parameters."""
        return nnx.merge(self.graph, params)

    @functools.cached_property
    def graph(self) -> nnx.GraphDef[Network]:
        """The network without its parameters: tracing alone ever looks at it."""
        return nnx.graphdef(nnx.eval_shape(lambda: self.model(nnx.Rngs(0))))
