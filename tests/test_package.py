"""The wheel: what it holds, how large it is, and which version it says it is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import jaxclip

ROOT = Path(__file__).parent.parent


def test_package_the_wheel_holds_jaxclip_alone_and_is_small(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name == f"jaxclip-{jaxclip.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 200_000
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "jaxclip",
        f"jaxclip-{jaxclip.__version__}.dist-info",
    }
    assert "jaxclip/py.typed" in names
    modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "jaxclip").rglob("*.py")}
    assert modules <= set(names)


def test_package_the_version_is_that_of_the_citation_and_has_its_part_in_the_changelog():
    assert f"\nversion: {jaxclip.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
