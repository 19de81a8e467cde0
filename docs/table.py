"""Writes the table of `methods.md` from the code: `python docs/table.py`."""

import inspect
import re
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
reference's own code (golden), Optax itself, or the equation.

`python docs/table.py` writes it anew.
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
    reference = "\n\n".join(f"::: jaxclip.{name}" for name in sorted(jaxclip.named()))
    return f"{HEAD}\n{table}\n\n## Wrappers\n\n{wrappers}\n\n## Reference\n\n{reference}\n"


def row(name: str) -> list[str]:
    """Returns the cells of one method."""
    method = inspect.unwrap(jaxclip.named()[name])
    body = inspect.getsource(method).split('"""')[2]
    parts = [
        ", ".join(dict.fromkeys(re.findall(rf"(?<!\.)\b{module}\.(\w+)", body))) or default
        for module, default in (
            ("measures", "its own"),
            ("thresholds", "given"),
            ("shrinks", "hard"),
        )
    ]
    return [f"`{name}`", *parts, str(state_size(name, method)), where_from(method), held_by(name)]


def state_size(name: str, method) -> int:
    """Counts the numbers in the state, without the step counters and the metrics."""
    first = next(iter(inspect.signature(method).parameters.values()))
    given = ARGUMENTS.get(name, {first.name: 1.0} if first.default is first.empty else {})
    state = jax.eval_shape(method(**given).init, MODEL)
    entries, _ = jax.tree_util.tree_flatten_with_path(state)
    return sum(x.size for path, x in entries if not re.search("metrics|step", str(path)))


def where_from(method) -> str:
    """Returns the source that the docstring names, or what it is like."""
    found = re.search(r"Source:\n(.*)", inspect.getdoc(method) or "", re.DOTALL)
    return " ".join(found.group(1).split()).rstrip(".") if found else "jaxclip"


def held_by(name: str) -> str:
    """Returns the test, outside of the contract suite, that holds the method to its source."""
    tests = [
        test
        for file in sorted(TESTS.rglob("test_*.py"))
        for test, body in re.findall(
            r"^def (test_\w+)\((.*?)(?=^def |\Z)", file.read_text(), re.MULTILINE | re.DOTALL
        )
        if re.search(rf"jaxclip\.{name}\b", body) and "contract" not in test
    ]
    tests.sort(key=lambda test: "golden" not in test)
    return f"`{tests[0]}`" if tests else "the contract alone"


def first_sentence(function) -> str:
    """Returns what a docstring begins with."""
    return (inspect.getdoc(function) or "").split("\n")[0]


if __name__ == "__main__":
    PAGE.write_text(page())
