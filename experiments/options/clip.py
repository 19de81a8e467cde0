"""A clip and its limit as they are typed."""

import ast
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import jaxclip
from experiments.errors import BadInput, check_name, nearest
from experiments.training import config
from experiments.training.schedules import SHAPES, shape_number

FORM = "give its name, with literals for arguments, such as clip_by_leaf_norm(ord=1)"


class Limit(NamedTuple):
    """A limit that goes from `first` to `last` by the share `by` of the steps, or stays `first`."""

    shape: int | None
    first: float
    last: float
    by: float


def constant_limit(limit: float) -> Limit:
    """Returns a constant limit."""
    return Limit(None, limit, limit, 1.0)


def read_limit(text: str) -> Limit:
    """Returns the limit that `text` means, such as `0.5` or `cosine:1.0:0.1`."""
    shape, *numbers = text.split(":")
    try:
        if not numbers:
            return constant_limit(float(text))
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if shape not in SHAPES or len(values) not in (2, 3):
        raise BadInput(
            f"--limit {text} is neither a number nor a schedule: give one like 0.5 or "
            f"{', '.join(f'{name}:1.0:0.1' for name in SHAPES)}"
            f"{nearest(shape, SHAPES)}"
        )
    first, last, by = (*values, 0.5 if shape == "step" else 1.0)[:3]
    if not (math.isfinite(first) and math.isfinite(last)):
        raise BadInput(f"--limit {text} has an end that is not finite: give two finite numbers")
    if not 0 < by <= 1:
        raise BadInput(
            f"--limit {text} is to end at the share {by} of the steps: give 0 < share <= 1"
        )
    return Limit(shape_number(shape), first, last, by)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A named method of jaxclip, as written on the command line; calling it makes the clip.

    Attributes:
        text: `method` or `method(arguments)`, the arguments being Python literals.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __call__(self, limit: config.Limit | float) -> optax.GradientTransformationExtraArgs:
        """Returns the clip with this limit, if it takes one and its text does not give it."""
        arguments = self.arguments
        if self.limit_name is not None:
            arguments = {self.limit_name: limit} | arguments
        try:
            self.signature.bind(**arguments)
        except TypeError as error:
            raise BadInput(
                f"--clip {self.text}: {error}; {self.name} takes {self.name}{self.signature}"
            ) from error
        return self.method(**arguments)

    @functools.cached_property
    def call(self) -> ast.Call:
        """The text as a call."""
        try:
            expression = ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise BadInput(f"--clip {self.text} is not a method: {FORM}") from error
        call = expression if isinstance(expression, ast.Call) else ast.Call(expression, [], [])
        if not isinstance(call.func, ast.Name):
            raise BadInput(f"--clip {self.text} is not a method: {FORM}")
        return call

    @functools.cached_property
    def name(self) -> str:
        """The name of the method."""
        assert isinstance(self.call.func, ast.Name)
        name = self.call.func.id
        known = jaxclip.named()
        check_name(name, sorted(known), "method of jaxclip", "--clip")
        return name

    @property
    def method(self) -> Callable[..., optax.GradientTransformationExtraArgs]:
        """The method itself."""
        return jaxclip.named()[self.name]

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """What the method takes, without the types."""
        signature = inspect.signature(self.method)
        parameters = [
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in signature.parameters.values()
        ]
        return inspect.Signature(parameters)

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the text gives, by name."""
        parameters = self.signature.parameters
        places = [name for name, one in parameters.items() if one.kind is not one.KEYWORD_ONLY]
        if len(self.call.args) > len(places):
            raise BadInput(
                f"--clip {self.text} has {len(self.call.args)} arguments without a name, and may "
                f"have {len(places)}: {self.name} takes {self.name}{self.signature}"
            )
        given = [
            *zip(places, self.call.args, strict=False),
            *((str(keyword.arg), keyword.value) for keyword in self.call.keywords),
        ]
        arguments = {}
        for name, value in given:
            if name not in parameters:
                raise BadInput(
                    f"--clip {self.text}: {self.name} has no argument {name}"
                    f"{nearest(name, parameters)}; it takes {self.name}{self.signature}"
                )
            if name in arguments:
                raise BadInput(f"--clip {self.text} gives {name} twice: give it once")
            arguments[name] = self.literal(value)
        return arguments

    def literal(self, value: ast.expr) -> Any:
        """Returns the value of an argument. Nothing is ever evaluated but literals."""
        try:
            return ast.literal_eval(value)
        except ValueError as error:
            raise BadInput(
                f"--clip {self.text}: the argument {ast.unparse(value)} is not a literal; give a "
                f"number, a string, True, False, None, or a tuple, list or dict of these"
            ) from error

    @functools.cached_property
    def limit_name(self) -> str | None:
        """The name of the argument that is the limit, if the method takes one."""
        first = next(iter(self.signature.parameters), None)
        return first if first in ("limit", "norm") else None

    @property
    def own_limit(self) -> float:
        """The limit in the text; without one the method's default, otherwise 1."""
        if self.limit_name is None:
            return 1.0
        default = self.signature.parameters[self.limit_name].default
        limit = self.arguments.get(self.limit_name, default)
        return float(limit) if isinstance(limit, (int, float)) else 1.0
