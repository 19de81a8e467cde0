"""What a program holds, as its text says: collectives that run, and routines of a platform."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import export

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


class Collective(NamedTuple):
    """One collective operation: its kind, and the number of entries of each of its results."""

    kind: str
    sizes: tuple[int, ...]


def collectives(compiled: jax.stages.Compiled, *, rare: bool = False) -> list[Collective]:
    """The collectives that an ordinary step runs, or those of its rare branches too.

    A `lax.cond` of jaxclip is true where a gradient is extreme, so its false branch is what runs.
    """
    computations, entry = _computations(compiled.as_text())

    def of(name: str) -> list[Collective]:
        found = []
        for line in computations[name]:
            if match := COLLECTIVE.search(line):
                found.append(Collective(match[2], _sizes(match[1])))
            for called in _called(line, rare):
                found += of(called)
        return found

    return of(entry)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation of a module, and the name of the one that is run."""
    computations: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%([\w.-]+) \(", line):
            name = match[2]
            entry = name if match[1] else entry
            computations[name] = []
        elif computations and line.startswith("  "):
            computations[name].append(line)
    return computations, entry


def _called(line: str, rare: bool) -> list[str]:
    """The computations that an operation runs."""
    if " conditional(" in line:
        branches = re.search(r"branch_computations=\{(.*?)\}", line)
        if branches:
            names = re.findall(r"%([\w.-]+)", branches[1])
        else:
            names = re.findall(r"(?:false|true)_computation=%([\w.-]+)", line)[::-1]
        return names if rare else names[:1]
    return re.findall(r"(?:calls|to_apply|body|condition)=%([\w.-]+)", line)


def _sizes(shapes: str) -> tuple[int, ...]:
    """The number of entries of every array in a type such as `(f32[], s32[4]{0})`."""
    found = re.findall(r"\w+\[([\d,]*)\]", shapes)
    return tuple(math.prod(map(int, filter(None, shape.split(",")))) for shape in found)


# The routines that a program may call, beside what XLA compiles itself.
_ROUTINES = {
    # The singular value decomposition of LAPACK.
    "cpu": r"lapack_\w+",
    # That of cuSOLVER.
    "cuda": r"cusolver_\w+",
    # XLA for TPU has no decomposition of singular values, but the QR and the eigenvalues that
    # `jnp.linalg.svd` makes it of, under these names.
    "tpu": r"Qr|Eigh|ProductOfElementaryHouseholderReflectors",
}


def check_lowers_everywhere(f: Callable, *args: Any) -> dict[str, set[str]]:
    """Asserts that a function lowers for every platform, and that what it needs is there.

    That is no callback to the host, no float64, and no routine that the platform lacks.

    Returns:
      The routines that it calls on each platform.
    """
    traced = jax.jit(f).trace(*args)
    called = {}
    for platform, known in _ROUTINES.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        called[platform] = set(re.findall(r"custom_call @([\w.$]+)", text))
        assert all(re.fullmatch(known, name) for name in called[platform]), called
        assert "callback" not in text and not re.search(
            r"stablehlo\.(send|recv|infeed|outfeed)", text
        )
        assert not re.search(r"[<x]f64>", text)
    exported = export.export(jax.jit(f), platforms=tuple(_ROUTINES))(*args)
    assert exported.platforms == tuple(_ROUTINES)
    return called
