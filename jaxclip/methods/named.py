"""What makes a function a named method: a signature for Optax, and a place in the list."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, ParamSpec

import optax

from ..core import clip

P = ParamSpec("P")
Make = Callable[P, optax.GradientTransformationExtraArgs]

_methods: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {}


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A default that decides shapes or code, and that `optax.inject_hyperparams` is to leave alone.

    That function makes an array of every argument that is a number, and a schedule of every one
    that can be called; an `ord`, a `window` and a `shrink` cannot be traced.
    """

    value: Any

    def __repr__(self) -> str:
        return getattr(self.value, "__name__", repr(self.value))


def named_method(*fixed: str) -> Callable[[Make[P]], Make[P]]:
    """Makes a function a named method.

    Its signature spells the options of `clip` out, where the source says `**options`, and hides the
    defaults of the arguments called `fixed`, so that `optax.inject_hyperparams(method)` works.
    """

    def decorate(make: Make[P]) -> Make[P]:
        signature = inspect.signature(make)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [
            p.replace(default=Fixed(p.default)) if p.name in fixed else p for p in own
        ] + _options(make)
        full = signature.replace(parameters=parameters)

        @functools.wraps(make)
        def named(*args: P.args, **kwargs: P.kwargs) -> optax.GradientTransformationExtraArgs:
            for key, value in kwargs.items():
                if isinstance(value, Fixed):
                    kwargs[key] = value.value
            unknown = [key for key in kwargs if key not in full.parameters]
            if unknown:
                raise TypeError(
                    f"`{make.__name__}` has no argument `{unknown[0]}`. Its arguments are "
                    f"{_spelled(full)}."
                )
            return make(*args, **kwargs)

        vars(named)["__signature__"] = full
        _methods[make.__name__] = named
        return named

    return decorate


def named() -> dict[str, Callable[..., optax.GradientTransformationExtraArgs]]:
    """Returns every named method, by its name."""
    return dict(_methods)


def _spelled(signature: inspect.Signature) -> str:
    """The signature without its types."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))


def _options(make: Callable) -> list[inspect.Parameter]:
    """The parameters that `**options: Unpack[Options]` stands for, with the defaults of `clip`."""
    hint = typing.get_type_hints(make).get("options")
    if hint is None:
        return []
    [options] = typing.get_args(hint)
    defaults = inspect.signature(clip).parameters
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=Fixed(defaults[name].default),
            annotation=t,
        )
        for name, t in typing.get_type_hints(options).items()
    ]
