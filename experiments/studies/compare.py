"""The command `compare`: every training of a study, and the page that answers its question."""

import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax

from experiments import files
from experiments.errors import check_name
from experiments.pages import report
from experiments.runs import progress
from experiments.runs.run import use
from experiments.studies import catalog, page
from experiments.studies.settings import Folders, Setting
from experiments.studies.study import Arm, Outcome, Study, best
from experiments.sweeps.grid import product, stack, values
from experiments.sweeps.processes import is_first, join
from experiments.sweeps.sweep import check_chunk_size, check_chunks, sweep
from experiments.training.data import Data
from experiments.training.train import History

QUICK_SEEDS = 3


def run(
    name: str,
    *,
    full: bool,
    settings: Sequence[str],
    folder: Path,
    folders: Folders,
    chunk: int,
    platform: str | None,
    processes: tuple[str | None, int, int],
    command: str,
) -> None:
    """Trains the missing arms of a study, and prints its answer.

    Args:
        name: of the study.
        full: whether its full form.
        settings: the settings to train on; none means all.
        folder: where it is kept.
        folders: the original files of data sets.
        chunk: the number of trainings side by side.
        platform: where to compute.
        processes: HOST:PORT of the first process, how many there are, and the number of this one.
        command: how it was typed, for the record.
    """
    check_chunk_size(chunk)
    join(*processes)
    spread_over_cores()
    use(platform)
    study = catalog.find(name)
    arms = select_arms(study.arms(full), settings)
    outcomes = compare(study, arms, full, folder, folders, chunk, command)
    if is_first():
        table = page.table("best", "", page.sort_outcomes(best(outcomes)))
        print(f"\n{report.as_markdown(table)}\n{study.answer(outcomes)}\n")
        print(f"The page is {folder / 'report.html'}")


def spread_over_cores() -> None:
    """Makes every core a device, if JAX has not looked at its devices yet.

    Trainings are many small operations, which one device computes on one core.
    """
    # By default XLA has a thread a device. In JAX 0.10 a batched QR, of an orthogonal
    # initialization, waits for a second one: with all devices at it, forever.
    os.environ.setdefault("NPROC", str(2 * (os.cpu_count() or 1)))
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", os.cpu_count())


def select_arms(arms: Sequence[Arm], names: Sequence[str]) -> Sequence[Arm]:
    """Returns the arms on the settings of these names, or all if none is given."""
    known = dict.fromkeys(arm.setting.name for arm in arms)
    for name in names:
        check_name(name, known, "setting of this study", "--settings")
    return [arm for arm in arms if not names or arm.setting.name in names]


def compare(
    study: Study,
    arms: Sequence[Arm],
    full: bool,
    folder: Path,
    folders: Folders,
    chunk: int,
    command: str,
) -> list[Outcome]:
    """Trains the missing arms of a study, and writes its page."""
    wanted = {
        "study": study.name,
        "full": full,
        "settings": list(dict.fromkeys(arm.setting.name for arm in arms)),
        "versions": files.versions(),
    }
    seeds = range(study.seeds if full else QUICK_SEEDS)
    load = functools.cache(lambda setting: setting.data(folders))
    claim = files.claim(folder / "study.json", wanted)
    with claim if is_first() else nullcontext():
        for arm in arms if is_first() else ():
            check_chunks(folder / "arms" / arm.slug)
        outcomes = train_all(arms, seeds, folder, load, chunk)
        if is_first():
            details = {"command": command, **describe(wanted, arms)}
            report.keep(page.page(study, outcomes, details), folder)
    return outcomes


def train_all(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    folder: Path,
    load: Callable[[Setting], Data],
    chunk: int,
) -> list[Outcome]:
    """Returns the outcome of every arm at every point of its grid."""
    outcomes = []
    with progress.trials(sum(len(arm.grid) for arm in arms) * len(seeds)) as report:
        for arm in arms:
            grid = product(arm.grid, values("seed", *seeds))
            history = sweep(
                arm.config,
                stack(grid),
                load(arm.setting),
                folder / "arms" / arm.slug,
                chunk=chunk,
                report=count_progress(functools.partial(report, arm.title)),
            )
            outcomes += split(arm, history, len(seeds))
    return outcomes


def count_progress(tell: Callable[[int], None]) -> Callable[[int, int], None]:
    """Returns the report of a sweep that passes on how many more trainings are done."""
    before = 0

    def report(done: int, total: int) -> None:
        nonlocal before
        tell(done - before)
        before = done

    return report


def split(arm: Arm, history: History, seeds: int) -> list[Outcome]:
    """Returns the outcomes of an arm's points, whose trials follow one another by seeds."""
    return [
        Outcome(arm, point, jax.tree.map(lambda x, i=i: x[i * seeds : (i + 1) * seeds], history))
        for i, point in enumerate(arm.grid)
    ]


def describe(wanted: dict[str, Any], arms: Sequence[Arm]) -> dict[str, str]:
    """Returns how the page was made."""
    configs = "\n\n".join(f"{arm.title}: {arm.config}; grid {list(arm.grid)}" for arm in arms)
    # Without the addresses of functions.
    configs = re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", configs)
    return {"versions": json.dumps(wanted["versions"], indent=2), "configs": configs}
