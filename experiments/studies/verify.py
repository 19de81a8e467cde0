"""The command `verify`: a study's page computed anew from its record, and some of it trained anew.

The same search runs again, but looks its trainings up. It asks for exactly the lines that there
are if the record is whole, and ends in the same page. Chunks of trainings are then trained again:
whole ones, since the bits of a training may depend on how many are side by side.
"""

import functools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax

from experiments import files
from experiments.errors import BadInput
from experiments.pages import report
from experiments.studies import catalog, compare, page, records
from experiments.studies.arms import Arm, Design, Outcome, Training
from experiments.studies.pictures import PICTURES
from experiments.studies.search import Finding, Request, search
from experiments.studies.settings import Folders
from experiments.studies.study import Study
from experiments.studies.trainer import Trainer, group, singles

REMEDY = "restore it, or train the study anew into another folder"


class Record(TypedDict):
    """The content of `config.json`."""

    study: str
    full: bool
    settings: list[str]
    design: dict[str, int]
    chunk: int
    devices: int
    arms: dict[str, Any]
    versions: dict[str, str]
    command: NotRequired[str]


class Replay(NamedTuple):
    """What a record holds, after the search has gone through it.

    Attributes:
        study: the study.
        config: its description.
        findings: what the search finds.
        page: the page that follows from the record.
        chunks: the requests of every chunk that was trained, each of one seed.
        lines: the line of every one of these, by chunk.
    """

    study: Study
    config: Record
    findings: Sequence[Finding]
    page: report.Page
    chunks: Sequence[Sequence[Request]]
    lines: Sequence[Sequence[Training]]


class Lookup:
    """Answers a search from the lines of a record, each of which is asked for once."""

    def __init__(self, trainings: Sequence[Training], chunk: int):
        self.known = {name_of(one): one for one in trainings}
        if len(self.known) < len(trainings):
            raise BadInput(f"{catalog.TRAININGS} has a training twice: {REMEDY}")
        self.chunk = chunk
        self.chunks: list[list[Request]] = []
        self.lines: list[list[Training]] = []

    def __call__(self, requests: Sequence[Request]) -> list[Outcome]:
        """Returns the outcome of every request."""
        found = [
            Outcome(one.arm, one.stage, one.point, [self.take(one, seed) for seed in one.seeds])
            for one in requests
        ]
        for indices in group(requests):
            rows = [row for index in indices for row in singles(requests[index])]
            lines = [line for index in indices for line in found[index].trainings]
            for start in range(0, len(rows), self.chunk):
                self.chunks.append(rows[start : start + self.chunk])
                self.lines.append(lines[start : start + self.chunk])
        return found

    def take(self, request: Request, seed: int) -> Training:
        """Returns the line of a training, and takes it off the record."""
        arm, point = request.arm, tuple(sorted(request.point.items()))
        name = request.stage, arm.setting.name, arm.name, point, seed
        if name not in self.known:
            raise BadInput(
                f"{catalog.TRAININGS} lacks the training of {arm.title} in {request.stage} at "
                f"{dict(request.point)} with seed {seed}: {REMEDY}"
            )
        return self.known.pop(name)


def name_of(one: Training) -> tuple[Any, ...]:
    """Returns what names a training among all of its study."""
    return one.stage, one.setting, one.arm, tuple(sorted(one.point.items())), one.seed


def run(where: str, again: int, seed: int | None, folders: Folders) -> None:
    """Verifies a study, and prints what holds.

    Args:
        where: the folder of its record, or its name, for that in the repository.
        again: how many chunks to train anew.
        seed: decides which; by default chance does.
        folders: the original files of data sets.

    Raises:
        BadInput: something does not hold.
    """
    folder = Path(where)
    if not (folder / catalog.CONFIG).is_file():
        catalog.find(where)
        folder = catalog.RESULTS / where
    if not (folder / catalog.CONFIG).is_file():
        raise BadInput(f"{folder} has no {catalog.CONFIG}: {where} has no results of this design")
    compare.spread_over_cores()
    replayed = replay(folder)
    count = sum(map(len, replayed.lines))
    print(f"{count} trainings: those that the search asks for, and no other.")
    check_page(replayed.page, folder)
    tables, figures = len(replayed.page.tables), len(replayed.page.figures)
    print(f"The answer, {tables} tables and {figures} figures follow from them, number by number.")
    chance = random.Random(seed)
    for index in chance.sample(range(len(replayed.chunks)), min(again, len(replayed.chunks))):
        print(retrain(replayed, index, folders), flush=True)


def replay(folder: Path) -> Replay:
    """Returns what follows from the record in a folder.

    Raises:
        BadInput: it is damaged, not whole, or of other arms than those of the study today.
    """
    config: Record = files.read_json(folder / catalog.CONFIG, Record, REMEDY)
    study = catalog.find(config["study"])
    arms = compare.select_arms(study.arms(config["full"]), config["settings"])
    check_arms(arms, config)
    lookup = Lookup(records.read(folder), config["chunk"])
    findings = search(arms, Design(**config["design"]), lookup)
    if lookup.known:
        raise BadInput(
            f"{folder / catalog.TRAININGS} has {len(lookup.known)} trainings that the search does "
            f"not ask for: {REMEDY}"
        )
    details = compare.details(dict(config), config.get("command", ""))
    made = page.page(study, findings, details)
    return Replay(study, config, findings, made, lookup.chunks, lookup.lines)


def check_arms(arms: Sequence[Arm], config: Record) -> None:
    """Raises `BadInput` where the arms of the study today are not those of the record."""
    today = {arm.title: files.plain(compare.describe_arm(arm)) for arm in arms}
    if different := files.differences(config["arms"], today):
        raise BadInput(f"the arms of {config['study']} have changed ({', '.join(different)})")


def check_page(made: report.Page, folder: Path) -> None:
    """Raises `BadInput` where the page in a folder is not the one made."""
    page = report.load(folder)
    follows = [one for one in page.figures if not one.name.startswith(PICTURES)]
    kept = report.as_json(page._replace(figures=follows))
    for name, value in report.as_json(made).items():
        if value != kept[name]:
            raise BadInput(f"the {name} of {folder / catalog.PAGE} do not follow from the record")


def retrain(replayed: Replay, index: int, folders: Folders) -> str:
    """Returns what came of training a chunk again.

    Raises:
        BadInput: it came out otherwise, though nothing has changed that it depends on.
    """
    config, requests = replayed.config, replayed.chunks[index]
    load = functools.cache(lambda setting: setting.data(folders))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(Path(scratch), load, replayed.study.measures, config["chunk"])
        lines = [one for outcome in trainer(requests) for one in outcome.trainings]
    pairs = list(zip(lines, replayed.lines[index], strict=True))
    differing = [kept for new, kept in pairs if numbers(new) != numbers(kept)]
    what = f"{len(pairs)} trainings of {requests[0].arm.title} in {requests[0].stage}"
    if not differing:
        return f"{what}, trained anew: the same, bit for bit."
    changed = files.differences(config["versions"], files.versions("scipy"))
    if config["devices"] != len(jax.devices()):
        changed.append(f"{config['devices']} devices there, {len(jax.devices())} here")
    if not changed:
        raise BadInput(f"{what}, trained anew: {len(differing)} came out otherwise")
    most = max(abs(new.test - kept.test) for new, kept in pairs)
    return f"{what}, trained anew ({', '.join(changed)}): scores differ by up to {most:.3g}."


def numbers(one: Training) -> Any:
    """Returns what has to be the same whenever it is trained; nan is None, which equals itself."""
    return files.plain(one._replace(seconds=0.0)._asdict())
