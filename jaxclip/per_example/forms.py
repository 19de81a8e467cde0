"""The choice, for every parameter, of the form in which its per-example norm is computed."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .program import ParamIndex, Program, Site, Slot
from .rules import rule_of

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
      floats: how many numbers an example has to hold for it.
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
    floats: int
    operations: int
    why: str
    falls_back: bool


def plans(program: Program, blocks: Sequence[int], form: Form) -> list[Plan]:
    """Chooses the form of every parameter.

    Args:
      program: the traced loss.
      blocks: which block each parameter belongs to.
      form: the form to take where there is a choice; "auto" is by cost.

    Returns:
      One plan for each group of parameters that share no weight with another group.
    """
    read = {site.weight: None for site in program.sites} | dict.fromkeys(program.lifted)
    group = list(range(len(program.parameters)))
    for slot in read:
        first, *others = sorted(group[i] for i in program.values[slot].sources)
        group = [first if g in others else g for g in group]
    return [
        _plan(
            program,
            tuple(ParamIndex(i) for i, g in enumerate(group) if g == leader),
            tuple(s for s in read if group[min(program.values[s].sources)] == leader),
            blocks,
            form,
        )
        for leader in sorted(set(group))
    ]


def _plan(
    program: Program,
    parameters: tuple[ParamIndex, ...],
    weights: tuple[Slot, ...],
    blocks: Sequence[int],
    form: Form,
) -> Plan:
    sites = tuple(site for site in program.sites if site.weight in weights)
    lifted = tuple(slot for slot in weights if slot in program.lifted)
    views = [program.values[slot].view for slot in weights]
    size = sum(_size(program, i) for i in parameters)

    readers = list(dict.fromkeys(name for slot in lifted for name in program.lifted[slot]))
    falls_back = not (_ELEMENTWISE | _PASSED_ON).issuperset(readers)

    def plan(
        kind: Literal["unused", "entries", "gram", "matrices"],
        at_weight: bool,
        keep: bool,
        floats: int,
        operations: int,
        why: str,
    ) -> Plan:
        return Plan(
            parameters,
            weights,
            sites,
            lifted,
            kind,
            at_weight,
            keep,
            floats,
            operations,
            why,
            falls_back,
        )

    if not weights:
        return plan("unused", True, False, 0, 0, "the loss does not depend on it")
    one_block = len({blocks[i] for i in parameters}) == 1
    inputs = sum(_act_size(site) + _out_size(site) for site in sites)
    viewed = len(parameters) == 1 and None not in views
    without_rule = f"no rule for {', '.join(readers)}"
    if not falls_back:
        without_rule = f"{', '.join(readers)}: the backward pass has made it"
    if viewed and len(weights) == 1 and not sites:
        return plan("entries", True, True, size, size, without_rule)
    single = viewed and len(sites) == 1 and not lifted
    if single or (viewed and not lifted and _aligned(program, sites)):
        shape = [rule_of(site).sizes(site) for site in sites]
        groups, _, left, right = shape[0]
        positions = sum(t for _, t, _, _ in shape)
        gram_floats = 2 * groups * positions**2
        gram_operations = groups * positions**2 * (left + right)
        gram_operations = gram_operations if positions > 1 else left + right
        weight_size = groups * left * right
        matrices = ("matrices", single, weight_size <= inputs, weight_size)
        operations = 0 if weight_size <= inputs else positions * weight_size
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
    if not falls_back and viewed:
        why = "used at several places in different ways"
    keep = not one_block or size <= inputs or not sites
    # Gradients are made with respect to the weights, and taken back to the parameters from there.
    floats = size + sum(_weight_size(program, slot) for slot in weights)
    return plan("matrices", False, keep, floats, size, why)


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
