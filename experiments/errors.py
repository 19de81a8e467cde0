"""Errors that the user can fix, and the stop that the user asks for."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """An error in the user's input; its message is one line: what, why and what to do."""


class Stopped(KeyboardInterrupt):
    """The user stopped a command; the message is the command that continues it."""


def check_name(name: str, known: Iterable[str], kind: str, option: str = "") -> None:
    """Raises `BadInput` where a name is unknown, with the nearest one that is known.

    Args:
        name: the user's input.
        known: the names that there are.
        kind: the kind of thing that they name.
        option: the option that the name belongs to.
    """
    names = list(known)
    if name not in names:
        given = f"{option} {name}".strip()
        raise BadInput(
            f"{given} is not a {kind}{nearest(name, names)}; there are {', '.join(names)}"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a remark that suggests the name nearest to `name`, or nothing."""
    names = list(known)
    match = [] if name in names else difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {match[0]}?" if match else ""


def in_one_line(error: BaseException) -> str:
    """Returns the message of an error without its line breaks."""
    return " ".join(str(error).split())
