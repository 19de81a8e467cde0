"""Writes the table of `methods.md` from the code: `python docs/table.py`."""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxclip

PAGE = Path(__file__).parent / "methods.md"
TESTS = Path(__file__).parent.parent / "tests"
MODEL = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
ARGUMENTS = {
    "clip_by_group_norm": {"labels": {"kernel": "a", "bias": "b"}, "limits": {"a": 1.0, "b": 1.0}}
}
HEAD = """# The methods

All of this is read from the code, and a test holds the page to it: the parts of every method, the
numbers that its state holds for a model of a kernel `[64, 32]` and a bias `[32]` beside its step
counter and metrics, the source, and the test that holds the method to it: outputs of the
reference's own code (golden), Optax itself, or the equation. A threshold that is "given" is the
argument.

`python docs/table.py` writes it anew. Each method has a page of its own, with its equation, a
training that it clipped, and its behavior on trains of norms.
"""
FIGURES = """
## Shrinks and measures

The norm after a clip with a limit of 1, by the norm before; dotted, no clip:

![Norm after the clip against norm before, for eight shrinks](figures/shrinks.svg)

A cloud of gradients of two entries, in gray, and what is left of it after a clip with a limit of 1:

![A cloud of gradients before and after clips by four measures](figures/measures.svg)
"""


def page() -> str:
    """Returns the whole page."""
    columns = ("method", "measure", "threshold", "shrink", "state", "source", "held by")
    rows = [row(name) for name in sorted(jaxclip.named())]
    lines = [" | ".join(cells) for cells in (columns, ["---"] * len(columns), *rows)]
    table = "\n".join(f"| {line} |" for line in lines)
    wrappers = "\n".join(
        f"- `{name}`: {first_sentence(getattr(jaxclip, name))}"
        for name in ("skip_nonfinite", "skip_on_spike", "with_error_feedback")
    )
    return f"{HEAD}\n{table}\n\n## Wrappers\n\n{wrappers}\n{FIGURES}"


def row(name: str) -> list[str]:
    """Returns the cells of one method."""
    method = inspect.unwrap(jaxclip.named()[name])
    cells = [
        ", ".join(parts(method, "measures")) or ", ".join(parts_of_callees(method, "measures")),
        ", ".join(parts(method, "thresholds")) or constant_limit(method) or "given",
        ", ".join(parts(method, "shrinks")) or "hard",
        str(state_size(name, method)),
        where_from(method),
        held_by(name),
    ]
    return [f"[`{name}`](methods/{name}.md)", *cells]


def parts(method: Callable, module: str) -> list[str]:
    """Returns the names of the measures, thresholds or shrinks that the body of a method names."""
    names = {
        function: name
        for name, function in vars(getattr(jaxclip, module)).items()
        if inspect.isfunction(function) and ">>>" in (function.__doc__ or "")
    }
    names.pop(jaxclip.thresholds.as_threshold, None)  # makes one of what is given
    return list(dict.fromkeys(names[x] for x in functions_in(method) if x in names))


def parts_of_callees(method: Callable, module: str) -> list[str]:
    """Returns the names that the methods and private functions have that a method calls."""
    return [
        part
        for function in map(inspect.unwrap, functions_in(method))
        if function.__name__ in jaxclip.named() or function.__module__ == method.__module__
        for part in parts(function, module) or parts_of_callees(function, module)
    ]


def functions_in(function: Callable) -> Iterator[Callable]:
    """Yields the functions that the body of a function names, in order."""
    for node in ast.walk(body_of(function)):
        found = None
        if isinstance(node, ast.Name):
            found = function.__globals__.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = getattr(function.__globals__.get(node.value.id), node.attr, None)
        if inspect.isfunction(found):
            yield found


def body_of(function: Callable) -> ast.Module:
    """Returns the statements of a function, without its signature and decorators."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    return ast.Module(definition.body, [])


def constant_limit(method: Callable) -> str:
    """Returns the number that a method gives `clip` for a limit, if it is one."""
    for node in ast.walk(body_of(method)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "clip":
            limit = node.args[1]
            return f"{limit.value:g}" if isinstance(limit, ast.Constant) else ""
    return ""


def state_size(name: str, method: Callable) -> int:
    """Counts the numbers in the state, without the step counters and the metrics."""
    first = next(iter(inspect.signature(method).parameters.values()))
    given = ARGUMENTS.get(name, {first.name: 1.0} if first.default is first.empty else {})
    state = jax.eval_shape(method(**given).init, MODEL)
    entries, _ = jax.tree_util.tree_flatten_with_path(state)
    return sum(x.size for path, x in entries if not re.search("metrics|step", str(path)))


def where_from(method: Callable) -> str:
    """Returns the source that the docstring names, or what it is like."""
    found = re.search(r"Source:\n(.*)", inspect.getdoc(method) or "", re.DOTALL)
    return " ".join(found.group(1).split()).rstrip(".") if found else "jaxclip"


def held_by(name: str) -> str:
    """Returns the test, outside of the contract suite, that holds the method to its source.

    One of reference outputs comes first, then the one that is about the fewest methods.
    """
    tests = [
        ("golden" not in test, len(methods), test)
        for test, methods in tests_of_methods().items()
        if name in methods and "contract" not in test
    ]
    return f"`{min(tests)[2]}`" if tests else "the contract alone"


@functools.cache
def tests_of_methods() -> dict[str, set[str]]:
    """Returns the methods that every test names, in its body, its decorators or a table it uses."""
    found = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        module = ast.parse(file.read_text()).body
        named = {name: node for node in module for name in names_defined(node)}
        for name, node in named.items():
            if name.startswith("test_"):
                found[name] = methods_in(node, named)
    return found


def names_defined(node: ast.stmt) -> list[str]:
    """Returns the names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def methods_in(node: ast.AST, named: dict[str, ast.stmt]) -> set[str]:
    """Returns the methods below a node, and those of what it refers to in its own module."""
    methods, seen, nodes = set(), {node}, [node]
    while nodes:
        for below in ast.walk(nodes.pop()):
            if isinstance(below, ast.Attribute) and isinstance(below.value, ast.Name):
                if below.value.id == "jaxclip" and below.attr in jaxclip.named():
                    methods.add(below.attr)
            elif isinstance(below, ast.Name) and named.get(below.id) not in (None, *seen):
                seen.add(named[below.id])
                nodes.append(named[below.id])
    return methods


def first_sentence(function: Callable) -> str:
    """Returns what a docstring begins with."""
    return (inspect.getdoc(function) or "").split("\n")[0]


if __name__ == "__main__":
    PAGE.write_text(page())
