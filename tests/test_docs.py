"""The documentation's own code runs, and prints what it says."""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxclip
from tests.helpers import METHODS

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("index", "extending", "questions", "recipes", "sharding", "trainers")
    ),
]
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


@pytest.fixture(scope="module")
def method_pages():
    sys.path.insert(0, str(ROOT / "docs"))  # where it finds `table`
    yield runpy.run_path(str(ROOT / "docs" / "method_pages.py"))
    sys.path.remove(str(ROOT / "docs"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(jaxclip.named()))
def test_docs_the_page_of_a_method_is_that_of_the_code(name, method_pages):
    assert (ROOT / "docs" / "methods" / f"{name}.md").read_text() == method_pages["page"](name)


def test_docs_every_method_has_a_page_and_a_figure():
    for folder, ending in (("methods", "md"), ("figures", "svg")):
        found = {file.stem for file in (ROOT / "docs" / folder).glob(f"*.{ending}")}
        assert set(jaxclip.named()) <= found


@pytest.mark.parametrize(
    "module", ["", ".measures", ".norms", ".per_example", ".shrinks", ".thresholds"]
)
def test_docs_every_public_symbol_is_in_the_reference(module):
    """By its own name, or as a member of a module that the reference shows whole."""
    module = f"jaxclip{module}"
    pages = [ROOT / "docs" / "reference.md", *(ROOT / "docs" / "methods").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)}
    public = {
        name: member.__module__
        for name, member in vars(importlib.import_module(module)).items()
        if (inspect.isfunction(member) or inspect.isclass(member))
        and not name.startswith("_")
        and member.__module__.startswith(module)
    }
    assert len(public) > 5
    whole = module in shown  # with what it defines itself
    for name, defined in public.items():
        assert (whole and defined == module) or {f"{module}.{name}", f"jaxclip.{name}"} & shown, (
            name
        )


def test_docs_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []


@pytest.mark.wide
def test_docs_the_site_builds_without_a_warning_and_shows_its_formulas(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {file.parent.name: file.read_text() for file in tmp_path.rglob("index.html")}
    assert "<math" in pages["zclip"]
    assert [name for name, page in pages.items() if "arithmatex" in page] == []


def test_docs_relative_links_lead_to_files():
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        (file.name, link)
        for file in files
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text())
        if "://" not in link and not (file.parent / link).exists()
    ]
    assert broken == []


def rows():
    """The rows of the table of methods, by the method."""
    table = (ROOT / "docs" / "methods.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in table if line.startswith("| [`")]
    columns = ("measure", "threshold", "shrink", "state", "source", "test")
    return {
        re.sub(r"\[`(\w+)`\].*", r"\1", name): dict(zip(columns, row, strict=True))
        for name, *row in cells
    }


def test_docs_every_public_method_has_a_row_and_a_line_in_the_contract():
    contract = {case.name for case in METHODS}
    public = {name for name in jaxclip.named() if hasattr(jaxclip, name)}
    assert public == contract == set(jaxclip.named()) == set(rows())


@pytest.mark.parametrize("name", jaxclip.named())
def test_docs_a_row_of_the_table_is_true(name):
    row, method = rows()[name], inspect.unwrap(jaxclip.named()[name])
    for column in ("measure", "threshold", "shrink"):
        module = getattr(jaxclip, f"{column}s")
        for part in row[column].split(", "):
            assert callable(getattr(module, part, None)) or part in ("given", "1"), part
    # A given limit has an argument, and what has another threshold has none.
    arguments = inspect.signature(method).parameters
    given = "norm" in arguments or any(
        key in ("limit", "limits", "scale") and argument.default is argument.empty
        for key, argument in arguments.items()
    )
    assert (row["threshold"] == "given") == given
    assert row["source"] in " ".join((inspect.getdoc(method) or "").split()) + " jaxclip"
    # The test names the method itself, or in a table of its module that it uses.
    [source] = [
        file.read_text()
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if f"\ndef {row['test'].strip('`')}(" in file.read_text()
    ]
    assert re.search(rf"\bjaxclip\.{name}\b", source)


def test_docs_tests_are_credited_with_their_own_decorators(tmp_path):
    space = runpy.run_path(str(ROOT / "docs" / "table.py"))
    file = tmp_path / "test_some.py"
    file.write_text(
        """
TABLE = {"value": jaxclip.clip_by_value}

def test_first():
    jaxclip.clip_by_leaf_norm(1.0)

@pytest.mark.parametrize("method", [jaxclip.zclip])
def test_second(method):
    method()

@pytest.mark.parametrize("key", TABLE)
def test_third(key):
    TABLE[key](1.0)
"""
    )
    space["tests_of_methods"].__wrapped__.__globals__["TESTS"] = tmp_path
    assert space["tests_of_methods"]() == {
        "test_first": {"clip_by_leaf_norm"},
        "test_second": {"zclip"},
        "test_third": {"clip_by_value"},
    }
