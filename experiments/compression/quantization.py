"""Quantization of weights, symmetric, at 2 to 8 bits: after training, and in training.

The arithmetic is that of Qwix. Kernels are quantized; biases and other vectors, a hundredth of the
parameters or less, stay as they are.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.compression.weights import is_kernel, map_kernels
from experiments.errors import BadInput
from experiments.training.config import Params, Task
from experiments.training.data import Data

FEWEST, MOST = 2, 8
SCALE_BYTES = 4


class Grid(NamedTuple):
    """The numbers that a quantized weight may be: `scale * (-q, ..., q)`, `q = 2^(bits-1) - 1`.

    Attributes:
        bits: of a weight, 2 to 8.
        per_channel: whether every output, the last axis, has a scale of its own; otherwise every
            kernel has one.
    """

    bits: int
    per_channel: bool = True

    def __str__(self) -> str:
        return f"int{self.bits} per {'channel' if self.per_channel else 'tensor'}"


def check_bits(bits: int) -> None:
    """Raises `BadInput` unless weights can have so many bits."""
    if not FEWEST <= bits <= MOST:
        raise BadInput(f"the bits of a weight are {bits}: give {FEWEST} to {MOST}")


def quantize(params: Params, grid: Grid) -> Params:
    r"""Returns the parameters with a `qwix.QArray` in the place of every kernel.

    $$q = \mathrm{clip}(\mathrm{round}(w / s), \pm(2^{b-1} - 1)), \quad
    s = \max |w| / (2^{b-1} - \tfrac12)$$

    Args:
        params: the parameters.
        grid: the bits, and what has a scale of its own.

    Raises:
        BadInput: there are no such bits.
    """
    import qwix

    check_bits(grid.bits)
    most = 2 ** (grid.bits - 1) - 1

    def quantized(kernel: jax.Array) -> Any:
        axes = (kernel.ndim - 1,) if grid.per_channel else ()
        array = qwix.quantize(kernel, f"int{grid.bits}", channelwise_axes=axes)
        # Qwix keeps the code -2^(b-1), which only one of two equal extremes is rounded to.
        return dataclasses.replace(array, qvalue=jnp.maximum(array.qvalue.astype(jnp.int8), -most))

    return map_kernels(quantized, params)


def dequantize(params: Params) -> Params:
    """Returns quantized parameters as arrays of the type that they had: the codes, scaled."""
    import qwix

    return jax.tree.map(
        lambda leaf: qwix.dequantize(leaf) if isinstance(leaf, qwix.QArray) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, qwix.QArray),
    )


def rounded(params: Params, grid: Grid) -> Params:
    """Returns the parameters with every kernel rounded to the grid."""
    return dequantize(quantize(params, grid))


def straight_through(params: Params, grid: Grid) -> Params:
    r"""Returns the parameters rounded to the grid, with the derivative of those that are not.

    $$w + \mathrm{stop}(\mathrm{rounded}(w) - w)$$

    Source:
        Bengio, Léonard, Courville 2013, arXiv 1308.3432.
    """
    stop = jax.lax.stop_gradient
    return jax.tree.map(lambda w, r: w + stop(r - w), params, rounded(stop(params), grid))


def quantized_nbytes(params: Params, grid: Grid) -> int:
    """Returns the bytes that quantized parameters take, codes packed, with their scales."""

    def size(leaf: Any) -> int:
        entries = math.prod(leaf.shape)
        if not is_kernel(leaf):
            return entries * leaf.dtype.itemsize
        scales = leaf.shape[-1] if grid.per_channel else 1
        return -(-entries * grid.bits // 8) + SCALE_BYTES * scales

    return sum(size(leaf) for leaf in jax.tree.leaves(params))


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A task that is scored with quantized weights, and may be trained with them.

    Attributes:
        task: the task.
        grid: the bits.
        in_training: whether the loss is that of the quantized weights as well, whose derivative
            goes straight through.
    """

    task: Task
    grid: Grid
    in_training: bool

    @property
    def dataset(self) -> str:
        """The data set of the task."""
        return getattr(self.task, "dataset", "")

    def data(self, folder: Path | None = None) -> Data:
        """Returns the data of the task."""
        return self.task.data(folder)

    def init(self, key: jax.Array) -> Params:
        """Returns new parameters."""
        return self.task.init(key)

    def loss(self, params: Params, batch: Any) -> jax.Array:
        """Returns the loss f32[] of a batch."""
        if self.in_training:
            params = straight_through(params, self.grid)
        return self.task.loss(params, batch)

    def score(self, params: Params, test: Any) -> jax.Array:
        """Returns the score f32[] of the quantized weights."""
        return self.task.score(rounded(params, self.grid), test)
