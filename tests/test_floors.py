"""The order of the floors: a module imports only from its own floor and from those below."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the roof to the ground. The files of a floor may import one another, in no circle.
FLOORS = {
    "experiments": [
        "__main__",
        "options",
        "studies",
        "runs",
        "pages",
        "sweeps",
        "compression",
        "tasks",
        "training",
        "processes",
        "files",
        "errors",
    ],
    "jaxclip": [
        "contrib",
        "advice",
        "weights",
        "methods",
        "wrappers",
        "core",
        "measures",
        "per_example",
        "thresholds",
        "shrinks",
        "singular",
        "scope",
        "reports",
        "clip_metrics",
        "arguments",
        "leaves",
        "norms",
        "devices",
        "reductions",
        "bits",
    ],
}


def imports(path, package):
    """The modules of a package that a file imports, wherever in it, by their dotted names."""
    found = set()
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = inside[: len(inside) - node.level + 1] if node.level else ()
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == package}


def modules(package):
    """The files of a package, by their dotted names."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def module_of(name, known):
    """The module that an imported name is, or is in."""
    while name not in known:
        name = name.rpartition(".")[0]
    return name


def edges(package):
    """Which modules of a package import which, but for the packages' own `__init__`."""
    known = modules(package)
    return {
        name: {module_of(found, known) for found in imports(path, package)} - {name, package}
        for name, path in known.items()
        if name != package
    }


@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_down(package):
    floors = FLOORS[package]
    for name, targets in edges(package).items():
        floor = floors.index(name.split(".")[1])
        for target in targets:
            below = floors.index(target.split(".")[1])
            assert below >= floor, f"{name} imports {target}, which is above it"


def test_every_floor_is_there_and_none_is_forgotten():
    for package, floors in FLOORS.items():
        rooms = {name.split(".")[1] for name in edges(package)}
        assert rooms == set(floors)


@pytest.mark.parametrize("package", FLOORS)
def test_nothing_imports_in_a_circle(package):
    """Whatever the floors: every module can be read after all that it imports."""
    left = edges(package)
    while left:
        ready = {name for name, targets in left.items() if not targets & left.keys()}
        assert ready, f"a circle among {sorted(left)}"
        left = {name: targets for name, targets in left.items() if name not in ready}


def test_an_import_upwards_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "experiments/files").mkdir(parents=True)
    (tmp_path / "experiments/pages").mkdir()
    (tmp_path / "experiments/pages/report.py").write_text("from ..files import text\n")
    late = "def load():\n    from experiments.pages import report\n    return report\n"
    (tmp_path / "experiments/files/text.py").write_text(late)
    assert edges("experiments")["experiments.pages.report"] == {"experiments.files.text"}
    assert edges("experiments")["experiments.files.text"] == {"experiments.pages.report"}
    with pytest.raises(AssertionError, match="which is above it"):
        test_imports_go_down("experiments")
    with pytest.raises(AssertionError, match="a circle"):
        test_nothing_imports_in_a_circle("experiments")
