import json
import shutil

import pytest

from experiments.__main__ import main
from experiments.studies import catalog, compare
from tests.experiments.studies.test_compare import STUDY, arms, lines

__all__ = ["lines"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a study of lines, trained once."""
    return tmp_path_factory.mktemp("study") / "out"


@pytest.fixture
def record(lines, trained):
    """A copy of the record of a study."""
    if not trained.exists():
        compare.compare(
            STUDY, arms(False), full=False, folder=trained, folders={}, chunk=8, command="typed"
        )
    (lines / "record").mkdir()
    for name in (catalog.CONFIG, catalog.TRAININGS, catalog.PAGE):
        shutil.copy(trained / name, lines / "record" / name)
    return lines / "record"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.slow
def test_a_record_holds_and_trains_again_bit_for_bit(record, capsys):
    assert main(["verify", str(record), "--retrain", "100"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "27 trainings: those that the search asks for, and no other."
    assert told[1].startswith("The answer, 3 tables and 5 figures follow")
    again = [line for line in told[2:] if line.endswith("trained anew: the same, bit for bit.")]
    assert len(again) == len(told) - 2
    assert sum(int(line.split()[0]) for line in again) == 27


def test_a_score_that_was_changed_is_seen(record, capsys):
    path = record / catalog.TRAININGS
    header, *rows = path.read_text().splitlines()
    cells = rows[-1].split(",")
    column = header.split(",").index("test")
    cells[column] = str(float(cells[column]) + 0.01)
    path.write_text("\n".join([header, *rows[:-1], ",".join(cells), ""]))
    assert main(["verify", str(record), "--retrain", "0"]) == 2
    assert "do not follow from the record" in capsys.readouterr().err


def test_a_number_of_the_page_that_was_changed_is_seen(record, capsys):
    page = json.loads((record / catalog.PAGE).read_text())
    page["tables"][0]["rows"][0][1] += 1e-9
    (record / catalog.PAGE).write_text(json.dumps(page))
    assert main(["verify", str(record), "--retrain", "0"]) == 2
    assert "the tables of" in capsys.readouterr().err


def make_up(record):
    """Changes what no page shows, in one of the first round's trainings."""
    path = record / catalog.TRAININGS
    header, first, *rows = path.read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index("loss")] = "0.125"
    path.write_text("\n".join([header, ",".join(cells), *rows, ""]))


@pytest.mark.slow
def test_a_record_that_was_made_up_does_not_train_again(record, capsys):
    make_up(record)
    assert main(["verify", str(record), "--retrain", "100"]) == 2
    assert "in round 1, trained anew: 1 came out otherwise" in capsys.readouterr().err


@pytest.mark.slow
def test_with_other_versions_the_bits_may_differ_and_how_much_is_told(record, capsys):
    make_up(record)
    edit(record / catalog.CONFIG, '"jax": "', '"jax": "0.0.')
    path = record / catalog.PAGE
    page = json.loads(path.read_text())
    page["details"]["versions"] = page["details"]["versions"].replace('"jax": "', '"jax": "0.0.')
    path.write_text(json.dumps(page))
    assert main(["verify", str(record), "--retrain", "100"]) == 0
    [told] = [line for line in capsys.readouterr().out.splitlines() if "differ by" in line]
    assert "jax 0.0." in told and told.endswith("scores differ by up to 0.")


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        (
            catalog.TRAININGS,
            "\ntest,line,no clip,2",
            "\ntest,line,no clip,7",
            "lacks the training of",
        ),
        (catalog.TRAININGS, "\ntest,line,no clip,2", "\ntest,line,no clip,1", "a training twice"),
        (catalog.CONFIG, '"against": "no clip"', '"against": ""', "the arms of lines have changed"),
        (catalog.CONFIG, '"chunk": 8', '"chunk": "x"', "config.json is damaged"),
    ],
)
def test_what_does_not_hold_is_one_line(record, capsys, name, old, new, told):
    edit(record / name, old, new)
    assert main(["verify", str(record), "--retrain", "0"]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_training_too_many_is_told(record, capsys):
    path = record / catalog.TRAININGS
    last = path.read_text().splitlines()[-1]
    path.write_text(path.read_text() + last.replace("test,", "more,", 1) + "\n")
    assert main(["verify", str(record)]) == 2
    assert "has 1 trainings that the search does not ask for" in capsys.readouterr().err


def test_a_study_without_results_is_told(lines, capsys, monkeypatch):
    monkeypatch.undo()
    assert main(["verify", "placement"]) == 2
    assert "placement has no results of this design" in capsys.readouterr().err
    assert main(["verify", "placemnt"]) == 2
    assert "did you mean placement?" in capsys.readouterr().err
