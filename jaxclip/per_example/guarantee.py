"""How far one example can move a clipped sum."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from .. import shrinks
from .decision import Options

Relation = Literal["add_or_remove", "replace_one"]
# No factor of these makes a gradient longer than its limit.
_BOUNDING = (
    shrinks.hard,
    shrinks.smooth,
    shrinks.inverse_sqrt,
    shrinks.tanh,
    shrinks.normalize,
    shrinks.psac,
    shrinks.band,
    shrinks.drop,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Clipped:
    """A function that clips, and knows its guarantee; call it as `f(params, *batch)`.

    Attributes:
      function: what it calls.
      limits: the limits of all blocks.
      options: the other arguments it was made with.
    """

    function: Callable[..., Any]
    limits: Sequence[Any]
    options: Options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def sensitivity(self, relation: Relation = "add_or_remove") -> Any:
        r"""How far the sum is from that of a neighboring batch, at most, in the Euclidean norm.

        $$\Delta = \frac{c}{N} \sqrt{\textstyle\sum_b \tau_b^2}$$

        with $N$ for `normalize_by`, $c = 1$ for an example more or less, and $c = 2$ for another
        one in its place. With `rescale_to_unit_norm` every $\tau_b$ is 1.

        Args:
          relation: which batches are neighbors: `"add_or_remove"` one example (or mask one out), or
            `"replace_one"`.

        Returns:
          A number, or a scalar array if a limit is one.

        Raises:
          ValueError: nothing is known to bound what an example adds; the message says why.

        Examples:
          >>> from jaxclip import clipped_grad
          >>> private = clipped_grad(lambda w, x: w * x, 0.5, reduce="sum", bound=True)
          >>> private.sensitivity(), private.sensitivity("replace_one")
          (0.5, 1.0)

        Source:
          Dwork and Roth 2014, The Algorithmic Foundations of Differential Privacy, section 3.5.1.
        """
        if relation not in ("add_or_remove", "replace_one"):
            raise ValueError(f'`relation` is {relation!r}. Give "add_or_remove" or "replace_one".')
        reason = self._unbounded()
        if reason:
            raise ValueError(f"No sensitivity is known: {reason}")
        squares = [1.0 if self.options.rescale_to_unit_norm else t**2 for t in self.limits]
        one = sum(squares) ** 0.5 if len(squares) > 1 else self._single()
        return (2 if relation == "replace_one" else 1) * one / self.options.normalize_by

    def _single(self) -> Any:
        return 1.0 if self.options.rescale_to_unit_norm else self.limits[0]

    def _unbounded(self) -> str:
        options, shrink = self.options, self.options.shrink
        if any(isinstance(t, float | int) and math.isinf(t) for t in self.limits):
            return "a limit is None or infinite. Give every parameter a limit."
        if options.reduce == "mean":
            return (
                "the number of examples that a mean divides by is data as well. Set "
                '`reduce="sum"`, and `normalize_by=` the expected number.'
            )
        if options.nonfinite == "propagate":
            return 'an example with nan makes the sum nan. Set `nonfinite="zero"`.'
        if not options.bound:
            return "rounding may have made a norm smaller than it is. Set `bound=True`."
        base = shrink.func if isinstance(shrink, functools.partial) else shrink
        if base not in _BOUNDING:
            return f"`shrink` is {shrink!r}, which is not known to keep to the limit."
        return ""
