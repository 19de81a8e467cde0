import shutil
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.errors import BadInput
from experiments.pages import summary

RESULTS = Path(__file__).parents[3] / "experiments" / "results"


def test_the_summary_in_the_repository_is_that_of_its_pages(tmp_path, capsys):
    folder = shutil.copytree(RESULTS, tmp_path / "results")
    written = {path.relative_to(folder) for path in folder.rglob("*.md")}
    assert len(written) > 6
    for path in written:
        (folder / path).unlink()
    assert main(["report", str(folder)]) == 0
    assert "The summary is" in capsys.readouterr().out
    assert {path.relative_to(folder) for path in folder.rglob("*.md")} == written
    for path in written:
        assert (folder / path).read_text() == (RESULTS / path).read_text(), path


def test_a_section_has_the_question_the_answer_and_the_tables():
    text = (RESULTS / "README.md").read_text()
    for name, page in {path.parent.name: path for path in RESULTS.glob("*/page.json")}.items():
        loaded = summary.load(page.parent)
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert loaded.question in section
        assert loaded.answer in section
        assert f"    {loaded.details['command']}\n" in section
        assert (RESULTS / name / "best.md").read_text() in section
        assert "Every point of every grid" not in section


def test_a_folder_without_a_page_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"holds no study: none of its folders has a page.json"):
        summary.keep(tmp_path)
