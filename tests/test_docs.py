"""The documentation's own code runs, and prints what it says."""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import runpy
from pathlib import Path

import jax
import pytest

import jaxclip
from tests.helpers import METHODS

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("index", "extending", "recipes"))]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(jaxclip.__path__, "jaxclip.")
    if not name.startswith("jaxclip.per_example")
]


@pytest.mark.parametrize("page", PAGES)
def test_docs_code_prints_what_the_page_says(page):
    blocks = re.findall(r"```(python|text)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    space: dict = {}
    printed = ""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for language, text in blocks:
            if language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(text, page, "exec"), space)
                printed = out.getvalue()
            else:
                assert printed == text


@pytest.mark.parametrize("name", MODULES)
def test_docs_examples_in_docstrings(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_docs_every_public_function_has_an_example_and_its_arguments():
    for name, function in vars(jaxclip).items():
        if not inspect.isfunction(function) or name in ("named",):
            continue
        text = inspect.getdoc(function) or ""
        assert ">>>" in text, name
        for parameter in inspect.signature(inspect.unwrap(function)).parameters:
            assert f"{parameter}:" in text or f"*{parameter}:" in text, (name, parameter)


def test_docs_the_table_of_methods_is_that_of_the_code():
    space = runpy.run_path(str(ROOT / "docs" / "table.py"))
    assert (ROOT / "docs" / "methods.md").read_text() == space["page"]()


def test_docs_every_public_method_has_a_row_a_source_and_a_line_in_the_contract():
    table = (ROOT / "docs" / "methods.md").read_text()
    contract = {case.name for case in METHODS}
    public = {name for name in jaxclip.named() if hasattr(jaxclip, name)}
    assert public == contract == set(jaxclip.named())
    for name in public:
        assert f"| `{name}` |" in table
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert "the contract alone" not in row, row
