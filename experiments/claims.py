"""Folders that hold one piece of work, which one process at a time writes into."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import atomic, runs
from experiments.errors import BadInput

LONG = 40  # characters of a value that a message does not repeat, such as a hash


@contextlib.contextmanager
def claimed(path: Path, wanted: Mapping[str, Any]) -> Iterator[None]:
    """Keeps other processes out of a folder that is of this work, or becomes it.

    Args:
        path: the file in it that says which work it is of.
        wanted: what it says, or is to say.

    Raises:
        BadInput: the folder cannot be written, is being written, or is of something else.
    """
    folder = path.parent
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(atomic.locked(folder))
        except OSError as error:
            raise BadInput(
                f"{folder} cannot be written ({error.strerror}): name another folder with --out"
            ) from error
        if not path.exists():
            # A process killed while it wrote leaves a part behind.
            if any(item.suffix != ".part" and item.name != ".lock" for item in folder.iterdir()):
                raise BadInput(f"{folder} holds something else: name another folder with --out")
            atomic.write_text(path, f"{json.dumps(wanted, indent=2)}\n")
        if different := differences(runs.read_json(path), wanted):
            raise BadInput(
                f"{folder} is of other work or another version ({', '.join(different)}): name "
                f"another folder with --out"
            )
        yield


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two descriptions."""
    found = []
    for key, value in here.items():
        other = there.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += differences(other, value)
        elif value != other:
            short = len(str(value)) < LONG
            found.append(f"{key} {other} there, {value} here" if short else f"{key} differs")
    return found
