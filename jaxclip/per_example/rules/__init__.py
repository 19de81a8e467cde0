r"""The steps whose per-example gradient has a form cheaper than itself: a rule for each primitive.

The gradient of one example with respect to the weight of a *contraction* is a sum of outer products
over the positions $t$ at which the weight was used,

$$g = \sum_t u_t \otimes v_t, \qquad
  \|g\|^2 = \sum_{t,s} \langle u_t, u_s\rangle \langle v_t, v_s\rangle,$$

with $u$ from the activation and $v$ from the gradient with respect to the output. So it is for
`dot_general` in every order of its dimensions, and for a lookup, where $u_t$ is one-hot and only
its index is kept. A convolution is such a sum for every offset in its kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives

from ..products import Ids as Ids
from ..products import arranged as arranged
from ..program import Kind, Operand
from ..program import Site as Site
from .base import RULES as RULES
from .base import Factors as Factors
from .base import Layout as Layout
from .base import Rule as Rule
from .base import Sizes as Sizes
from .base import precision_of as precision_of
from .base import rule_of as rule_of
from .convolution import CONVOLUTION
from .dot import DOT
from .lookup import GATHER, SLICE

RULES |= {
    primitives.dot_general_p: DOT,
    primitives.conv_general_dilated_p: CONVOLUTION,
    primitives.gather_p: GATHER,
    primitives.dynamic_slice_p: SLICE,
}


def activation(
    eqn: Any,
    operands: Sequence[Operand],
    weights: Sequence[int],
    kind: Callable[[Operand], Kind],
) -> int | None:
    """The position of a step's activation among its operands, if there is a rule for the step."""
    rule, aval = RULES.get(eqn.primitive), eqn.outvars[0].aval
    if rule is None or len(weights) != 1 or not jnp.issubdtype(aval.dtype, jnp.floating):
        return None
    if 0 in (aval.size, eqn.invars[weights[0]].aval.size):
        return None
    examples = [i for i, operand in enumerate(operands) if kind(operand) == Kind.EXAMPLE]
    return rule.activation(eqn, weights[0], examples)
