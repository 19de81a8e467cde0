import jax
import pytest

from experiments.__main__ import main
from experiments.pages import report
from experiments.studies import catalog, claims, compare
from tests.experiments.line import LINE, Line
from tests.experiments.studies.test_compare import STUDY


@pytest.mark.wide
def test_all_claims_end_in_one_page_and_go_on_where_they_stopped(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(catalog, "find", lambda name: STUDY)
    monkeypatch.setattr(compare, "keep_compilations", lambda: None)
    validated = LINE._replace(validation=LINE.test)
    monkeypatch.setattr(Line, "data", lambda self, folder: validated, raising=False)
    one = claims.Claim("A clip helps.", "lines", "a <clip>")
    monkeypatch.setattr(claims, "CLAIMS", (one, one._replace(text="Nothing helps.", arm="x")))
    monkeypatch.chdir(tmp_path)
    assert main(["claims", "--chunk", "8"]) == 0
    told = capsys.readouterr().out
    assert " untested  Nothing helps." in told
    assert told.endswith("The page is runs/claims/report.html\n")
    page = report.load(tmp_path / "runs/claims")
    assert [row[0] for row in page.tables[0].rows] == ["A clip helps.", "Nothing helps."]
    own = report.load(tmp_path / "runs/claims/lines")
    assert len(page.tables) == 1 + len(own.tables)
    assert [figure.name for figure in page.figures] == [f"lines-{one.name}" for one in own.figures]
    assert page.details["lines"] == own.answer
    assert "1 untested of 2 claims" in page.answer

    before = (tmp_path / "runs/claims/page.json").read_bytes()
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)  # nothing is trained again
    assert main(["claims", "--chunk", "8"]) == 0
    assert (tmp_path / "runs/claims/page.json").read_bytes() == before


def test_bad_input_is_one_line(capsys):
    assert main(["claims", "--chunk", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: the chunk is 0")
