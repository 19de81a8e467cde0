"""The command `claims`: the quick forms of all studies that claims are judged by, and one page."""

from pathlib import Path

from experiments.pages import report
from experiments.pages.report import Page
from experiments.processes import join
from experiments.studies import catalog, claims, compare
from experiments.studies.search import Finding
from experiments.studies.settings import Folders
from experiments.sweeps.sweep import check_chunk_size

WORDS = ("true", "false", "depends", "not shown", "untested")


def run(folder: Path, folders: Folders, chunk: int, platform: str | None, command: str) -> None:
    """Trains what is missing of every study, and writes the page of all.

    Args:
        folder: of the page; each study has a folder in it.
        folders: the original files of data sets.
        chunk: the number of trainings side by side.
        platform: where to compute.
        command: how it was typed, for the record.
    """
    check_chunk_size(chunk)
    compare.spread_over_cores()
    found: dict[str, list[Finding]] = {}
    with join(platform=platform):
        compare.keep_compilations()
        for name in dict.fromkeys(claim.study for claim in claims.CLAIMS):
            study = catalog.find(name)
            made, place = study.arms(False), folder / name
            found[name] = compare.compare(study, made, False, place, folders, chunk, command)
    verdicts = claims.judge({name: (here, False) for name, here in found.items()})
    path = report.keep(page(folder, verdicts, list(found), command), folder)
    for one in verdicts:
        print(f"{one.word:>9}  {one.claim.text}")
    print(f"The page is {path}")


def page(folder: Path, verdicts: list[claims.Verdict], names: list[str], command: str) -> Page:
    """Returns one page of the verdicts, and of the tables and figures of all studies."""
    pages = {name: report.load(folder / name) for name in names}
    count = {word: sum(one.word == word for one in verdicts) for word in WORDS}
    return Page(
        title="claims",
        question="What is said about clipping, and what holds?",
        answer=", ".join(f"{number} {word}" for word, number in count.items() if number)
        + f" of {len(verdicts)} claims, by quick forms: a first look only.",
        tables=[
            claims.table(verdicts),
            *(
                one._replace(name=f"{name}-{one.name}")
                for name, here in pages.items()
                for one in here.tables
            ),
        ],
        figures=[
            one._replace(name=f"{name}-{one.name}")
            for name, here in pages.items()
            for one in here.figures
        ],
        details={"command": command, **{name: here.answer for name, here in pages.items()}},
    )
