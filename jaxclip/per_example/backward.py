"""The record of a batch's forward and backward pass."""

from typing import Any, NamedTuple

from jaxtyping import Array

from .forms import Plan
from .program import Program, SiteIndex, Slot

Grads = dict[int, Array]  # by parameter, or by slot where a plan stops at its weight


class Kept(NamedTuple):
    """What the backward pass of a batch left of the steps.

    Attributes:
      acts: the activation of each site, by slot, `[*loops, batch, *shape]`.
      outs: the gradient with respect to the output of each site, by index, in the same form.
      lifted: that with respect to each lifted weight, by slot, `[*loops, batch, *shape]`.
    """

    acts: dict[Slot, Array]
    outs: dict[SiteIndex, Array]
    lifted: dict[Slot, Array]


class Arrays(NamedTuple):
    """The arrays of a backward pass.

    Attributes:
      parameters: the leaves of the parameters.
      weights: the weights by slot.
      kept: activations and gradients.
      values: the losses.
    """

    parameters: list[Array]
    weights: dict[Slot, Array]
    kept: Kept
    values: Array


class Backward(NamedTuple):
    """All that norms and the sum are made of.

    Attributes:
      program: the traced loss.
      plans: how each parameter is dealt with that the loss depends on.
      arrays: the arrays.
      aux: the auxiliary output.
    """

    program: Program
    plans: list[Plan]
    arrays: Arrays
    aux: Any

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.arrays.values.shape[0]
