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

from experiments import answers, files, processes, progress, report, run, studies
from experiments.data import Data
from experiments.errors import BadInput
from experiments.options import Compare
from experiments.settings import Setting
from experiments.study import Arm, Outcome, Study, best
from experiments.sweep import check_chunks, product, stack, sweep, values
from experiments.train import History
from experiments.typed import nearest

QUICK_SEEDS = 3


def command(options: Compare, text: str) -> None:
    """Does what `compare` is asked for, and prints the answer.

    Args:
        options: what the user typed.
        text: how it was typed, for the record.
    """
    processes.join(options.coordinator, options.processes, options.process)
    spread_over_cores()
    run.use(options.platform)
    study = studies.study(options.study)
    arms = chosen(study.arms(options.full), options.settings)
    form = "full" if options.full else "quick"
    folder = options.out or Path("runs") / f"{study.name}-{form}"
    outcomes = compare(study, arms, options, folder, text)
    if processes.is_first():
        table = answers.table("best", "", answers.ranked(best(outcomes)))
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


def chosen(arms: Sequence[Arm], names: Sequence[str]) -> Sequence[Arm]:
    """Returns the arms on the settings of these names, or all where none is given."""
    known = dict.fromkeys(arm.setting.name for arm in arms)
    for name in names:
        if name not in known:
            raise BadInput(
                f"--settings {name} is none of this study{nearest(name, known)}; its settings are "
                f"{', '.join(known)}"
            )
    return [arm for arm in arms if not names or arm.setting.name in names]


def compare(
    study: Study, arms: Sequence[Arm], options: Compare, folder: Path, text: str
) -> list[Outcome]:
    """Runs the arms of a study, or what is missing of them, and writes its page into the folder."""
    wanted = {
        "study": study.name,
        "full": options.full,
        "settings": list(dict.fromkeys(arm.setting.name for arm in arms)),
        "versions": files.versions(),
    }
    seeds = range(study.seeds if options.full else QUICK_SEEDS)
    load = functools.cache(lambda setting: setting.data(options.folders))
    claim = files.claimed(folder / "study.json", wanted)
    with claim if processes.is_first() else nullcontext():
        for arm in arms if processes.is_first() else ():
            check_chunks(folder / "arms" / arm.slug)
        outcomes = train_all(arms, seeds, folder, load, options.chunk)
        if processes.is_first():
            details = {"command": text, **described(wanted, arms)}
            report.keep(answers.page(study, outcomes, details), folder)
    return outcomes


def train_all(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    folder: Path,
    load: Callable[[Setting], Data],
    chunk: int,
) -> list[Outcome]:
    """Returns what came of every arm at every point of its grid."""
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
                report=counted(functools.partial(report, arm.title)),
            )
            outcomes += split(arm, history, len(seeds))
    return outcomes


def counted(tell: Callable[[int], None]) -> Callable[[int, int], None]:
    """Returns what a sweep reports to, which tells how many more are done."""
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


def described(wanted: dict[str, Any], arms: Sequence[Arm]) -> dict[str, str]:
    """Returns what the page tells of how it was made."""
    configs = "\n\n".join(f"{arm.title}: {arm.config}; grid {list(arm.grid)}" for arm in arms)
    # Without where functions happened to lie in memory.
    configs = re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", configs)
    return {"versions": json.dumps(wanted["versions"], indent=2), "configs": configs}
