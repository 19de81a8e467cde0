"""A loss as a program of steps, sorted by what they depend on.

Every value is a constant, a *parameter value* (a parameter, or computed from parameters alone: a
cast, a transpose, a normalized weight), or an *example value*. Parameter values are the same for
every example of a batch, so they are computed once and ahead of everything else, those of a scan's
body included. What is left is steps on example values, in which parameter values appear as weights.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NewType, TypeGuard

import jax.numpy as jnp
import numpy as np
from jax.extend import core

_RESULT = "preferred_element_type"

Slot = NewType("Slot", int)  # where a value is kept while the program runs
SiteIndex = NewType("SiteIndex", int)  # the place of a site among those of the program
ParamIndex = NewType("ParamIndex", int)  # the place of a parameter among the leaves
Operand = Any  # the `Slot` that holds the value, or a `core.Literal`


class Kind(enum.IntEnum):
    """Whether a value depends on parameters, on examples, on both, or on neither."""

    CONSTANT = 0
    PARAMETER = 1
    EXAMPLE = 2


class View(NamedTuple):
    """A weight that holds entries of parameters, each at most once, all times the same number.

    The gradients with respect to those parameters together then have the norm of the gradient with
    respect to the weight, times the number.

    Attributes:
      places: which parameters, and where in each the entries lie: an array that is never read, of
        which NumPy knows the addresses. None where that is not known.
      dims: the dimension of the single parameter that each dimension of the weight is, None where
        the shape has changed.
      scaled: whether the number may be another than 1 and -1.
    """

    places: dict[ParamIndex, np.ndarray | None]
    dims: tuple[int, ...] | None
    scaled: bool = False

    @property
    def single(self) -> bool:
        """Whether the entries are those of one parameter."""
        return len(self.places) == 1


class Value(NamedTuple):
    """Facts about a value that are known before the program runs.

    Attributes:
      aval: shape and dtype, within the body of its scans.
      kind: what it depends on.
      varying: of a constant or parameter value, for each scan around it, whether it differs from
        one iteration to the next.
      active: whether a derivative with respect to parameters can pass through it.
      sources: the parameters that it is computed from.
      view: how it shows parameters, if that is all that it does.
    """

    aval: Any
    kind: Kind
    varying: tuple[bool, ...] = ()
    active: bool = False
    sources: frozenset[ParamIndex] = frozenset()
    view: View | None = None


class Op(NamedTuple):
    """One equation: its primitive's name, and what it is as a function of its operands."""

    name: str
    call: Callable[..., Sequence[Any]]
    inputs: tuple[Operand, ...]
    outputs: tuple[Slot, ...]
    eqn: Any = None


class Site(NamedTuple):
    """A step at which a weight meets an example value, for which there is a rule.

    Attributes:
      number: its place among the sites of the program.
      eqn: the equation, a `core.JaxprEqn`.
      weight: the slot of the weight.
      position: which operand of the equation the weight is.
      act: the slot of the example value, the *activation*.
      act_position: which operand that is.
      loops: the lengths of the scans around it, outermost first.
      varying: which of them the weight has its own slice for.
      op: the equation as a function of its operands.
    """

    number: SiteIndex
    eqn: Any
    weight: Slot
    position: int
    act: Slot
    act_position: int
    loops: tuple[int, ...]
    varying: tuple[bool, ...]
    op: Op

    def apply(self, weight: Any, act: Any) -> Any:
        """The output of the equation, for one example and one iteration, in any dtype."""
        # Constants other than literals are the starts of slices that take all of a dimension.
        operands = [
            operand.val if isinstance(operand, core.Literal) else jnp.zeros((), atom.aval.dtype)
            for operand, atom in zip(self.op.inputs, self.eqn.invars, strict=True)
        ]
        operands[self.position], operands[self.act_position] = weight, act
        params = {name: value for name, value in self.eqn.params.items() if name != _RESULT}
        if _RESULT in self.eqn.params:
            params[_RESULT] = weight.dtype
        return self.eqn.primitive.bind(*operands, **params)

    @property
    def kernel(self) -> Any:
        """Shape and dtype of the weight, for one iteration."""
        return self.eqn.invars[self.position].aval

    @property
    def output(self) -> Any:
        """Shape and dtype of the output, for one example and one iteration."""
        return self.eqn.outvars[0].aval


@dataclasses.dataclass
class Scope:
    """The program, or the body of one of its scans or of a rematerialized call.

    Attributes:
      depth: the number of scans around it.
      loops: their lengths.
      producers: the op that computes each constant or parameter value.
      given: the values of constants.
      steps: the steps on example values, in order.
      children: the bodies of the scans within.
      invariant: of a scan's body, the operand of the surrounding scope that a slot stands for.
      sliced: of a scan's body, the operand that a slot is a slice of.
      weights: the parameter values that the steps here and within the children read, by the slot
        that they read: its own, or that of the same value with a tap on it.
      parent: the scope around it.
    """

    depth: int = 0
    loops: tuple[int, ...] = ()
    producers: dict[Slot, Op] = dataclasses.field(default_factory=dict)
    given: dict[Slot, Any] = dataclasses.field(default_factory=dict)
    steps: "list[Step]" = dataclasses.field(default_factory=list)
    children: list["Scope"] = dataclasses.field(default_factory=list)
    invariant: dict[Slot, Operand] = dataclasses.field(default_factory=dict)
    sliced: dict[Slot, Operand] = dataclasses.field(default_factory=dict)
    weights: dict[Slot, Slot] = dataclasses.field(default_factory=dict)
    parent: "Scope | None" = None


class Call(NamedTuple):
    """A step that is a plain equation on example values, constants and weights."""

    op: Op

    @property
    def reads(self) -> list[Slot]:
        """The slots that the step reads."""
        return slots_of(self.op.inputs)

    @property
    def writes(self) -> tuple[Slot, ...]:
        """The slots that the step fills."""
        return self.op.outputs


class Use(NamedTuple):
    """A step that is a site: its output gets a tap, its activation is kept."""

    site: Site

    @property
    def reads(self) -> list[Slot]:
        """The slots that the step reads, that of the weight included."""
        return slots_of(self.site.op.inputs)

    @property
    def writes(self) -> tuple[Slot, ...]:
        """The slots that the step fills."""
        return self.site.op.outputs


class Remat(NamedTuple):
    """A step whose own steps are computed again in the backward pass.

    Attributes:
      steps: its own steps.
      inputs: the slots that it reads, weights excepted.
      writes: the slots that it fills.
      weights: the slots of the weights that it reads.
      sites: the sites within.
      options: those of `jax.checkpoint`.
    """

    steps: "list[Step]"
    inputs: tuple[Slot, ...]
    writes: tuple[Slot, ...]
    weights: tuple[Slot, ...]
    sites: tuple[Site, ...]
    options: dict[str, Any]

    @property
    def reads(self) -> list[Slot]:
        """The slots that the step reads."""
        return list(self.inputs)


class Scan(NamedTuple):
    """A step that is a loop.

    Attributes:
      body: the scope of one iteration.
      carry: the slots of the body that are carried, and the operands that they start from.
      closed: what every iteration reads besides its weights: slot of the body -> operand.
      sliced: what an iteration has a slice of, its weights excepted.
      carried: the operands of the body that are carried on.
      stacked: the operands of the body that are stacked.
      writes: the slots of the carried results, then of the stacked ones.
      varying: those weights of the body that an iteration has a slice of.
      sites: the sites within.
      options: length, direction, unrolling.
    """

    body: Scope
    carry: tuple[Slot, ...]
    initial: tuple[Operand, ...]
    closed: dict[Slot, Operand]
    sliced: dict[Slot, Operand]
    carried: tuple[Operand, ...]
    stacked: tuple[Operand, ...]
    writes: tuple[Slot, ...]
    varying: frozenset[Slot]
    sites: tuple[Site, ...]
    options: dict[str, Any]

    @property
    def reads(self) -> list[Slot]:
        """The slots of the surrounding scope that the step reads, weights excepted."""
        return slots_of([*self.initial, *self.closed.values(), *self.sliced.values()])


Step = Call | Use | Remat | Scan


def is_slot(operand: Operand) -> TypeGuard[Slot]:
    """Whether an operand is kept in a slot, and is no literal."""
    return isinstance(operand, int)


def slots_of(operands: Iterable[Operand]) -> list[Slot]:
    """Those operands that are kept in slots."""
    return [operand for operand in operands if is_slot(operand)]


@dataclasses.dataclass
class Program:
    """A traced loss.

    Attributes:
      top: the outermost scope.
      values: what is known of each slot.
      parameters: the slots of the parameters.
      examples: the slots of the example.
      results: the operands of the loss and of the auxiliary outputs.
      sites: every site.
      lifted: every weight that is differentiated as a whole, since no rule knows a step that
        reads it, and the names of those steps.
      tapped: for every lifted weight the slot of the same value with a tap on it.
      loops: the lengths of the scans around each weight of a site or lifted one.
    """

    top: Scope
    values: dict[Slot, Value]
    parameters: list[Slot]
    examples: list[Slot]
    results: list[Operand]
    sites: list[Site]
    lifted: dict[Slot, list[str]]
    tapped: dict[Slot, Slot]
    loops: dict[Slot, tuple[int, ...]]
