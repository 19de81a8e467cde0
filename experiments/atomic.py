"""Files that are there whole or not at all, and folders that one process writes into."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from experiments.errors import BadInput


def write(path: Path, write_into: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under a temporary name and renames it, so that nobody meets half of it.

    Raises:
        BadInput: the disk is full, or the file cannot be written for another reason.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write_into(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be written ({error.strerror or error}): what is finished is kept; make "
            f"room, or see to what is in the way, and go on"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, or not at all."""
    write(path, lambda file: file.write(text.encode()))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out; the lock goes with the process, however that ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"another process is writing into {folder}: wait for it, or stop it"
            ) from error
        yield
