"""The command `compare`: every training of a study, and the page that answers its question."""

import functools
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax

from experiments import files
from experiments.errors import check_name
from experiments.pages import report
from experiments.processes import Processes, is_first, join
from experiments.runs import progress
from experiments.studies import catalog, page, records
from experiments.studies.arms import Arm, Design
from experiments.studies.search import Finding, search
from experiments.studies.settings import Folders
from experiments.studies.study import Study
from experiments.studies.trainer import Trainer
from experiments.sweeps.sweep import check_chunk_size, check_chunks
from experiments.tasks import images

SWEEPS = "sweeps"


def run(
    name: str,
    *,
    full: bool,
    settings: Sequence[str],
    folder: Path,
    folders: Folders,
    chunk: int,
    platform: str | None,
    processes: Processes,
    command: str,
) -> None:
    """Trains what is missing of a study, and prints its answer.

    Args:
        name: of the study.
        full: whether its full form.
        settings: the settings to train on; none means all.
        folder: where it is kept.
        folders: the original files of data sets.
        chunk: the number of trainings side by side.
        platform: where to compute.
        processes: those that work together.
        command: how it was typed, for the record.
    """
    check_chunk_size(chunk)
    spread_over_cores()
    with join(processes, platform):
        keep_compilations()
        study = catalog.find(name)
        arms = select_arms(study.arms(full), settings)
        findings = compare(study, arms, full, folder, folders, chunk, command)
        if is_first():
            made = page.page(study, findings, {})
            for table in made.tables:
                if table.name.startswith("effects-"):
                    print(f"\n{table.title}\n\n{report.as_markdown(table)}", end="")
            print(f"\n{made.answer}\n\nThe page is {folder / 'report.html'}")


def spread_over_cores() -> None:
    """Makes every core a device, if JAX has not looked at its devices yet.

    Trainings are many small operations, which one device computes on one core.
    """
    # By default XLA has a thread a device. In JAX 0.10 a batched QR, of an orthogonal
    # initialization, waits for a second one: with all devices at it, forever.
    os.environ.setdefault("NPROC", str(2 * (os.cpu_count() or 1)))
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", os.cpu_count())


def keep_compilations() -> None:
    """Has JAX keep what it compiles, for the stages of a study and for the next one."""
    jax.config.update("jax_compilation_cache_dir", os.fspath(images.CACHE / "compilations"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)


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
) -> list[Finding]:
    """Trains what is missing of a study, and writes its record and its page."""
    design = study.design(full)
    wanted = describe(study, arms, full, chunk)
    load = functools.cache(lambda setting: setting.data(folders))
    claim = files.claim(folder / catalog.CONFIG, wanted)
    with claim if is_first() else nullcontext():
        if is_first():
            for sweep in sorted(folder.glob(f"{SWEEPS}/*")):
                check_chunks(sweep)
        with progress.trials(count(arms, design)) as tell:
            trainer = Trainer(folder / SWEEPS, load, study.measures, wanted["chunk"], tell)
            findings = search(arms, design, trainer)
        if is_first():
            files.write_json(folder / catalog.CONFIG, {**wanted, "command": command})
            records.write(folder, trainer.trainings)
            made = page.page(study, findings, details(wanted, command))
            figures = [*made.figures, *study.pictures(findings)]
            report.keep(made._replace(figures=figures), folder)
    return findings


def count(arms: Sequence[Arm], design: Design) -> int:
    """Returns how many trainings a search takes where no best point is at an edge."""
    fixed = (
        design.rounds * design.points * design.tuning_seeds
        + design.finalists * design.final_seeds
        + design.seeds
    )
    numbers = sum(len(arm.box) for arm in arms)
    # The chosen value is among those of a slice, or one more.
    return len(arms) * fixed + numbers * design.slice_points * design.slice_seeds


def describe(study: Study, arms: Sequence[Arm], full: bool, chunk: int) -> dict[str, Any]:
    """Returns what a study's record depends on, as plain values."""
    design, devices = study.design(full), len(jax.devices())
    wanted = {
        "study": study.name,
        "full": full,
        "settings": list(dict.fromkeys(arm.setting.name for arm in arms)),
        "design": vars(design),
        # All sweeps of a program have chunks of one size, and so are one compilation.
        "chunk": -(-min(chunk, design.points * design.tuning_seeds) // devices) * devices,
        "devices": devices,
        "arms": {arm.title: describe_arm(arm) for arm in arms},
        "versions": files.versions("scipy"),
    }
    return files.plain(wanted)


def describe_arm(arm: Arm) -> dict[str, Any]:
    """Returns an arm as plain values."""
    return {
        # Without the addresses of functions.
        "config": re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", str(arm.config)),
        "box": {name: vars(range) for name, range in arm.box.items()},
        "fixed": {name: str(value) for name, value in arm.fixed.items()},
        "against": arm.against,
    }


def details(wanted: dict[str, Any], command: str) -> dict[str, str]:
    """Returns how the page was made."""
    return {
        "command": command,
        **{name: files.to_json(wanted[name], indent=2) for name in ("design", "arms", "versions")},
    }
