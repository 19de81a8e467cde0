"""The choice, for every parameter, of the form in which its per-example norm is computed."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .program import ParamIndex, Program, Site, Slot
from .rules import rule_of
from .views import overlap

Form = Literal["auto", "gram", "matrices"]
# What a backward pass makes for these is no larger than the example value that they are applied to.
_ELEMENTWISE = frozenset(
    {"add", "add_any", "sub", "mul", "div", "pow", "rem", "atan2", "max", "min", "clamp",
     "select_n", "concatenate", "pad", "dynamic_update_slice"}
)  # fmt: skip
# Nor is it where the weight itself becomes an example value.
_PASSED_ON = frozenset(
    {"the loss", "the first carry of a scan", "the carry of a scan", "the output of a scan"}
)
# Numbers that are kept for the sum at most, a quarter of a gigabyte: beyond, they are made again.
_KEPT = 2**26


class Plan(NamedTuple):
    """How the gradients of some parameters are measured and summed.

    Attributes:
      parameters: which; more than one where a weight is computed from several.
      weights: the slots of the weights that they are read through.
      sites: the sites at which there is a rule for those.
      lifted: those weights that are differentiated as a whole.
      form: "gram" never makes a gradient of one example, "matrices" does at each site, and
        "entries" is handed it by the backward pass of the loss. "unused" is zero.
      at_weight: whether the norm is taken of the gradient with respect to the single weight; if
        not, the gradients are taken further back, to the parameters.
      keep: whether the gradients of the examples are kept for their sum.
      chunk: how many examples are measured at a time, so that their gradients take no more memory
        than the activations and gradients of the loss.
      floats: how many numbers an example that is measured has to hold for it.
      operations: how many multiplications an example costs, beyond an ordinary gradient.
      why: the reason for the form.
      falls_back: whether a step without a rule is the reason why gradients of examples are made.
    """

    parameters: tuple[ParamIndex, ...]
    weights: tuple[Slot, ...]
    sites: tuple[Site, ...]
    lifted: tuple[Slot, ...]
    form: Literal["unused", "entries", "gram", "matrices"]
    at_weight: bool
    keep: bool
    chunk: int
    floats: int
    operations: int
    why: str
    falls_back: bool


class Lanes(NamedTuple):
    """A batch as the devices see it.

    Attributes:
      examples: how many there are.
      devices: how many of them at least are measured at a time, for each device to have its share.
    """

    examples: int
    devices: int = 1


def plans(program: Program, blocks: Sequence[int], form: Form, lanes: Lanes) -> list[Plan]:
    """Chooses the form of every parameter.

    Args:
      program: the traced loss.
      blocks: which block each parameter belongs to.
      form: the form to take where there is a choice; "auto" is by cost.
      lanes: the size of the batch.

    Returns:
      One plan for each group of weights that share no entry of a parameter with another group, and
      one for each parameter that the loss does not depend on.
    """
    read = list({site.weight: None for site in program.sites} | dict.fromkeys(program.lifted))
    known = {sources for slot in read for sources in program.values[slot].sources}
    unused = [ParamIndex(i) for i in range(len(program.parameters)) if i not in known]
    return [
        *(_plan(program, group, blocks, form, lanes) for group in _groups(program, read)),
        *(_unused(parameter) for parameter in unused),
    ]


def _groups(program: Program, slots: Sequence[Slot]) -> list[tuple[Slot, ...]]:
    """Weights by the entries of parameters that they share."""
    group = list(range(len(slots)))
    by_source: dict[ParamIndex, list[int]] = {}
    for place, slot in enumerate(slots):
        for source in program.values[slot].sources:
            by_source.setdefault(source, []).append(place)
    for members in by_source.values():
        for i, j in itertools.combinations(members, 2):
            if group[i] != group[j] and _share(program, slots[i], slots[j]):
                first, other = sorted((group[i], group[j]))
                group = [first if g == other else g for g in group]
    return [
        tuple(slot for slot, g in zip(slots, group, strict=True) if g == leader)
        for leader in sorted(set(group))
    ]


def _share(program: Program, first: Slot, other: Slot) -> bool:
    a, b = program.values[first].view, program.values[other].view
    return a is None or b is None or overlap(a, b)


def _unused(parameter: ParamIndex) -> Plan:
    why = "the loss does not depend on it"
    return Plan((parameter,), (), (), (), "unused", True, False, 1, 0, 0, why, False)


def _plan(
    program: Program, weights: tuple[Slot, ...], blocks: Sequence[int], form: Form, lanes: Lanes
) -> Plan:
    parameters = tuple(sorted({i for slot in weights for i in program.values[slot].sources}))
    sites = tuple(site for site in program.sites if site.weight in weights)
    lifted = tuple(slot for slot in weights if slot in program.lifted)
    views = [program.values[slot].view for slot in weights]
    size = sum(_size(program, i) for i in parameters)

    readers = list(dict.fromkeys(name for slot in lifted for name in program.lifted[slot]))
    falls_back = not (_ELEMENTWISE | _PASSED_ON).issuperset(readers)
    one_block = len({blocks[i] for i in parameters}) == 1
    inputs = sum(_act_size(site) + _out_size(site) for site in sites)
    inputs += sum(_weight_size(program, slot) for slot in lifted)

    def plan(
        kind: Literal["unused", "entries", "gram", "matrices"],
        at_weight: bool,
        keep: bool,
        floats: int,
        operations: int,
        why: str,
    ) -> Plan:
        chunk = lanes.examples if keep else _chunk(lanes, inputs, floats)
        return Plan(
            parameters,
            weights,
            sites,
            lifted,
            kind,
            at_weight,
            keep,
            chunk,
            floats,
            operations,
            why,
            falls_back,
        )

    viewed = one_block and None not in views
    without_rule = f"no rule for {', '.join(readers)}"
    if not falls_back:
        without_rule = f"{', '.join(readers)}: the backward pass has made it"
    if viewed and len(weights) == 1 and not sites:
        return plan("entries", True, True, inputs, inputs, without_rule)
    single = viewed and len(sites) == 1 and not lifted
    if single or (viewed and not lifted and _aligned(program, sites)):
        shape = [rule_of(site).sizes(site) for site in sites]
        groups, _, left, right = shape[0]
        positions = sum(t for _, t, _, _ in shape)
        gram_floats = 2 * groups * positions**2
        gram_operations = groups * positions**2 * (left + right)
        gram_operations = gram_operations if positions > 1 else left + right
        weight_size = groups * left * right
        kept = weight_size <= inputs and weight_size * lanes.examples <= _KEPT
        matrices = ("matrices", single, kept, weight_size)
        operations = 0 if kept else positions * weight_size
        if form == "gram" or (form == "auto" and positions == 1):
            why = "one position: the product of two norms" if positions == 1 else "asked for"
            return plan("gram", single, False, gram_floats, gram_operations, why)
        if form == "matrices":
            return plan(*matrices, operations, "asked for")
        if weight_size <= inputs:
            why = f"{weight_size} numbers are no more than the {inputs} they are made of"
            return plan(*matrices, operations, why)
        if gram_floats < weight_size:
            why = f"2T² = {gram_floats} is less than {weight_size} weights"
            return plan("gram", single, False, gram_floats, gram_operations, why)
        return plan(*matrices, operations, f"2T² = {gram_floats} is not less than {weight_size}")
    why = without_rule if falls_back else "its weights are computed from parameters"
    if not falls_back and None not in views:
        why = "used at several places in different ways"
    # Gradients are made with respect to the weights, and taken back to the parameters from there.
    floats = size + sum(_weight_size(program, slot) for slot in weights)
    return plan("matrices", False, size <= inputs, floats, size, why)


def _chunk(lanes: Lanes, inputs: int, floats: int) -> int:
    """How many examples can be measured in the memory that their activations take."""
    most = lanes.examples * inputs // max(1, floats)
    fitting = [
        n
        for n in range(lanes.devices, lanes.examples + 1, lanes.devices)
        if lanes.examples % n == 0 and n <= most
    ]
    return max(fitting, default=lanes.devices)


def _aligned(program: Program, sites: Sequence[Site]) -> bool:
    """Whether the matrices of all sites have the same two sides, one way round or the other."""
    sides = []
    for site in sites:
        view = program.values[site.weight].view
        if not rule_of(site).aligned or any(site.varying) or view is None or view.dims is None:
            return False
        groups, left, right = rule_of(site).layout(site)
        if groups:
            return False
        sides.append((tuple(view.dims[d] for d in left), tuple(view.dims[d] for d in right)))
    return all(side in (sides[0], sides[0][::-1]) for side in sides)


def sides_of(program: Program, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two sides of a site's matrices, in dimensions of the parameter."""
    view = program.values[site.weight].view
    assert view is not None and view.dims is not None  # else no Gram form across sites is chosen
    _, left, right = rule_of(site).layout(site)
    return tuple(view.dims[d] for d in left), tuple(view.dims[d] for d in right)


def _size(program: Program, parameter: ParamIndex) -> int:
    return program.values[program.parameters[parameter]].aval.size


def _weight_size(program: Program, slot: Slot) -> int:
    value = program.values[slot]
    own = zip(program.loops[slot], value.varying, strict=True)
    return value.aval.size * math.prod(length for length, varies in own if varies)


def _act_size(site: Site) -> int:
    return math.prod(site.loops) * site.eqn.invars[site.act_position].aval.size


def _out_size(site: Site) -> int:
    return math.prod(site.loops) * site.output.size
