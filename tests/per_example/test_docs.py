"""The page on per-example clipping runs from top to bottom."""

import contextlib
import doctest
import importlib
import io
import pathlib
import re

import jax
import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "per-example.md"


def test_the_examples_of_the_page():
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 5
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):
        names: dict = {}
        for block in blocks:
            exec(block, names)  # this page is ours
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert printed.getvalue() == shown


@pytest.mark.parametrize("module", ["api", "explain", "guarantee", "noise", "rules.check"])
def test_the_examples_in_docstrings(module):
    with jax.numpy_rank_promotion("allow"):
        found = doctest.testmod(importlib.import_module(f"jaxclip.per_example.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
