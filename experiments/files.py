"""Files: written whole or not at all, by one process at a time, and checked when they are read.

Every format has one type, which `read_json`, `read_lines` or `read_arrays` holds a file against, so
that a damaged file is one line of `BadInput` and never a traceback.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import types
import typing
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import BadInput

PACKAGES = ("jaxclip", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LOCK = ".lock"
PART = re.compile(r".+\.\d+\.part")  # the part of a file that a killed writer left
LONG = 40  # characters of a value that a message does not repeat, such as a hash
LARGEST = float(np.finfo(np.float64).max)

# Writing


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raises `BadInput` with the name of the file where writing it fails."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{path} cannot be written ({error.strerror or error}): finished work is kept; make "
            f"room, or remove whatever blocks the path, and continue"
        ) from error


def write(path: Path, write_into: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under a temporary name and renames it, so that no reader meets half of it.

    Raises:
        BadInput: the disk is full, or the file cannot be written for another reason.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with write_errors(path):
        try:
            with part.open("wb") as file:
                write_into(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, or not at all."""
    write(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole, or not at all."""
    write_text(path, f"{to_json(value, indent=2)}\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file of arrays whole, or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write(path, lambda file: file.write(buffer.getvalue()))


def append_lines(path: Path, lines: Iterable[Any]) -> None:
    """Adds values to a file as lines of JSON. A process that is killed may leave half a line."""
    with write_errors(path), path.open("a", encoding="utf-8") as file:
        file.writelines(f"{to_json(line)}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


# One process at a time


@contextlib.contextmanager
def lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder; the lock ends with the process, however that ends.

    Args:
        folder: an existing folder.
        wait: whether to wait for another process; by default it is an error.

    Raises:
        BadInput: another process has the lock.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BadInput(
                f"another process is writing into {folder}: wait for it, or stop it"
            ) from error
        yield


def remove_parts(folder: Path) -> None:
    """Removes the parts that killed writers left in a folder that this process has locked.

    Folders below it that have locks of their own are left alone.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if PART.fullmatch(path.name):
                shutil.rmtree(path)
            elif not (path / LOCK).exists():
                remove_parts(path)
        elif PART.fullmatch(path.name):
            path.unlink()


@contextlib.contextmanager
def open_folder(
    folder: Path, remedy: str = "name another folder with --out", wait: bool = False
) -> Iterator[bool]:
    """Locks a folder, which is made where it is missing, and yields whether it is new.

    Args:
        folder: it is new if it holds nothing but the parts of killed writers.
        remedy: what to do where it cannot be written.
        wait: whether to wait for another process; by default it is an error.

    Raises:
        BadInput: the folder cannot be written, or another process has the lock.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(folder, wait))
        except OSError as error:
            raise BadInput(f"{folder} cannot be written ({error.strerror}): {remedy}") from error
        names = {path.name for path in folder.iterdir()} - {LOCK}
        yield all(PART.fullmatch(name) for name in names)


@contextlib.contextmanager
def claim(path: Path, wanted: Mapping[str, Any]) -> Iterator[None]:
    """Keeps other processes out of a folder that belongs to this work, or is new.

    Args:
        path: the file in it that describes its work.
        wanted: the description of this work.

    Raises:
        BadInput: the folder cannot be written, is being written, or belongs to something else.
    """
    folder = path.parent
    with open_folder(folder) as new:
        if not path.exists():
            if not new:
                raise BadInput(f"{folder} holds something else: name another folder with --out")
            write_json(path, wanted)
        remedy = "delete it and all beside it, or name another folder with --out"
        if different := differences(read_json(path, Mapping[str, Any], remedy), wanted):
            raise BadInput(
                f"{folder} belongs to another work or version ({', '.join(different)}): name "
                f"another folder with --out"
            )
        remove_parts(folder)
        yield


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two descriptions."""
    found = []
    for key, value in here.items():
        other = there.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += differences(other, value)
        elif value != other:
            short = len(str(value)) < LONG and len(str(other)) < LONG
            found.append(f"{key} {other} there, {value} here" if short else f"{key} differs")
    return found


# Reading


def read_json(path: Path, expected: Any, remedy: str) -> Any:
    """Reads a JSON file that holds a value of a type.

    Args:
        path: the file.
        expected: the type, as `check` takes it.
        remedy: what to do where the file is damaged.

    Raises:
        BadInput: the file cannot be read, or holds something else.
    """
    with read_errors(path, remedy):
        value = parse_json(path.read_text(encoding="utf-8"))
        check(value, expected)
        return value


def read_lines(path: Path, expected: Any, remedy: str, count: int | None = None) -> list[Any]:
    """Reads the first `count` lines of a file of JSON lines, by default all of them.

    Half a line at its end, as a killed process leaves it, does not count.

    Args:
        path: the file.
        expected: the type of every line, as `check` takes it.
        remedy: what to do where a line is damaged.
        count: the number of lines; what follows may be damaged.

    Raises:
        BadInput: the file cannot be read, or a line holds something else.
    """
    with read_errors(path, remedy):
        values = []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1][:count], 1):
            with at_place(f"line {number}"):
                values.append(parse_json(line.decode()))
                check(values[-1], expected)
        return values


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file, whose checksums are verified.

    Raises:
        BadInput: the file cannot be read, or is damaged.
    """
    with read_errors(path, remedy):
        content = path.read_bytes()
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as members:
                # Read whole, which verifies its checksum, before numpy looks into it.
                return {
                    name.removesuffix(".npy"): np.lib.format.read_array(
                        io.BytesIO(members.read(name)), allow_pickle=False
                    )
                    for name in members.namelist()
                }
        except Exception as error:  # a changed byte of a zip file may raise anything
            raise ValueError(f"no arrays: {error}") from error


@contextlib.contextmanager
def read_errors(path: Path, remedy: str) -> Iterator[None]:
    """Raises `BadInput` with the name of the file where reading it fails."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path} is damaged ({reason}): {remedy}") from error


@contextlib.contextmanager
def at_place(place: str) -> Iterator[None]:
    """Says in which place of a file a value is wrong."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {error}") from error


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text, which has no infinity and no nan."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def check(value: Any, expected: Any, place: str = "the value") -> None:
    """Raises `ValueError` where a value from JSON is not of a type.

    Args:
        value: a value from JSON.
        expected: a type of plain values, a union, `Literal`, `list`, `Sequence`, `tuple[T, ...]`,
            `Mapping[str, T]`, or a record: a named tuple, a dataclass or a `TypedDict`. A `float`
            is finite, and an array is a list of numbers or null, or of strings.
        place: the name of the value in the message.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return
    if origin in (typing.Union, types.UnionType):
        if not any(is_of_type(value, option) for option in arguments):
            raise ValueError(f"{place} is {shorten(value)}, not {type_name(expected)}")
    elif origin is typing.Literal:
        if not any(type(value) is type(item) and value == item for item in arguments):
            raise ValueError(f"{place} is {shorten(value)}, not {type_name(expected)}")
    elif expected is np.ndarray:
        strings = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not strings:
            check(value, list[float | None], place)
    elif origin in (list, tuple, Sequence):
        check_type(value, list, place)
        for index, item in enumerate(value):
            check(item, arguments[0], f"{place}[{index}]")
    elif origin in (dict, Mapping):
        check_type(value, dict, place)
        for name, item in value.items():
            check(item, arguments[1], name)
    elif hints := typing.get_type_hints(expected):
        check_type(value, dict, place)
        # Only a `TypedDict` has keys that may be missing.
        check_record(value, hints, getattr(expected, "__required_keys__", hints))
    elif expected is float:
        if type(value) not in (int, float) or not abs(value) <= LARGEST:
            raise ValueError(f"{place} is {shorten(value)}, not a finite number")
    else:
        check_type(value, expected, place)


def check_record(value: Mapping[str, Any], hints: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises `ValueError` where a mapping is not a record.

    Args:
        value: a value from JSON.
        hints: the type of every key that it may have.
        keys: the required ones.
    """
    if missing := [name for name in keys if name not in value]:
        raise ValueError(f"{', '.join(missing)} missing")
    if unknown := [name for name in value if name not in hints]:
        raise ValueError(f"{', '.join(map(shorten, unknown))} unknown")
    for name, item in value.items():
        check(item, hints[name], name)


def check_type(value: Any, expected: type, place: str) -> None:
    """Raises `ValueError` where a value has not a plain type."""
    if type(value) is not expected:
        raise ValueError(f"{place} is {shorten(value)}, not {type_name(expected)}")


def is_of_type(value: Any, expected: Any) -> bool:
    """Returns whether a value is of a type."""
    try:
        check(value, expected)
    except ValueError:
        return False
    return True


def type_name(expected: Any) -> str:
    """Returns a type as a message names it."""
    if typing.get_origin(expected) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(expected)))}"
    if options := typing.get_args(expected):
        return " or ".join(map(type_name, options))
    names = {int: "an integer", float: "a finite number", str: "a string", dict: "an object"}
    names |= {list: "a list", bool: "true or false", type(None): "null"}
    return names.get(expected, str(expected))


def shorten(value: Any) -> str:
    """Returns a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= LONG else f"{text[:LONG]}..."


def check_arrays(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[Sequence[int], Any]]
) -> None:
    """Raises `ValueError` where arrays have not the names, shapes and dtypes that are expected."""
    if arrays.keys() != expected.keys():
        raise ValueError(f"it holds {', '.join(arrays)}, not {', '.join(expected)}")
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        if array.shape != tuple(shape) or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype}{array.shape}, not {dtype}{tuple(shape)}")


# Contents


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns standard JSON, in which every number that is not finite is null."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """Returns `value` with None in place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def structure(tree: Any) -> list[str]:
    """Returns the path, dtype and shape of every array of a tree."""
    return [
        f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def fingerprint(tree: Any) -> str:
    """Returns the SHA-256 of all arrays of a tree: equal where they are equal bit for bit."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def slug(text: str) -> str:
    """Returns `text` with nothing in it that a file name should not have."""
    return re.sub(r"[^A-Za-z0-9_.=]+", "-", text).strip("-")[:80]


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions and the machine that the bits of a training depend on.

    Args:
        packages: further packages that it depends on.
    """
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in (*PACKAGES, *packages)},
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "system": f"{platform.system()} {platform.machine()}",
    }
