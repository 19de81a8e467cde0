"""Gradients that vanish and explode: by depth, by length, and what a clip changes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxclip
from experiments.pages.report import Column, Table
from experiments.pages.series import Figure, Series
from experiments.studies import probes
from experiments.studies.arms import NO_CLIP, Arm
from experiments.studies.compression import STUDY as COMPRESSION
from experiments.studies.compression import mean
from experiments.studies.search import Finding
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study
from experiments.tasks.deep import DeepMnist, layer_norms
from experiments.tasks.temporal_order import TemporalOrder
from experiments.training.config import Params
from experiments.training.train import History

DEPTHS = (2, 5, 10, 20, 50)
LENGTHS = (10, 50, 100, 200, 400)
CLIPPED = "with a clip"
AVERAGED = 20  # steps, at the start and in the end
KINDS = {
    "plain": {},
    "plain with small weights": {"gain": 0.7},
    "plain with large weights": {"gain": 2.0},
    "residual": {"residual": True},
    "normalized": {"normalized": True},
    "residual, normalized": {"residual": True, "normalized": True},
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns every network with and without a clip."""
    made = []
    for activation in ("relu", "tanh") if full else ("tanh",):
        for kind in KINDS if full else ("plain with large weights",):
            for depth in DEPTHS if full else (2, 20):
                task = DeepMnist(depth=depth, activation=activation, **KINDS[kind])
                name = f"{activation}, {kind}, depth {depth}"
                made += pair(Setting(name, task, norm=1.0, epochs=1, floor=0.0), layer_norms)
    for length in LENGTHS if full else ():
        setting = dataclasses.replace(
            SETTINGS["temporal_order"],
            name=f"recurrent, length {length}",
            task=TemporalOrder(length),
            epochs=2,
            floor=0.0,
        )
        made += pair(setting, recurrent_norms)
    return made


def pair(setting: Setting, watch: Callable[[Params], jax.Array]) -> list[Arm]:
    """Returns a setting with and without a clip: one program."""
    make = probes.clips(probes.training(setting, watch=watch), setting)
    return [make(NO_CLIP, against=""), make(CLIPPED, limit=probes.limits(setting))]


def recurrent_norms(gradient: Params) -> jax.Array:
    """Returns the norms f32[2] of the gradients of the recurrent weights and of the output."""
    return jnp.stack([jaxclip.global_norm(gradient[name]) for name in ("recurrent", "output")])


def log_norm(history: History, layer: int, end: bool) -> float:
    """Returns the mean log10 of a layer's norm over the first steps, or over the last ones.

    nan where it was not finite; a norm of 0 counts as the least positive number.
    """
    watched = np.asarray(history.watched, np.float64)
    norms = watched.reshape(-1, watched.shape[-1])[:, layer]
    part = norms[-AVERAGED:] if end else norms[:AVERAGED]
    return float(np.mean(np.log10(np.maximum(part, np.finfo(np.float32).tiny))))


def largest(history: History) -> float:
    """Returns the log10 of the largest norm of the whole gradient; infinity where one is not."""
    norms = np.asarray(history.norm, np.float64)
    return float(np.log10(np.max(np.where(np.isfinite(norms), norms, math.inf))))


MEASURES = {
    **{
        f"{place} layer, {'end' if end else 'start'}": functools.partial(
            log_norm, layer=layer, end=end
        )
        for place, layer in (("first", 0), ("last", -1))
        for end in (False, True)
    },
    "largest norm": largest,
}


def size_of(finding: Finding) -> int:
    """Returns the depth or the length that a finding is of."""
    return int(finding.arm.setting.name.rpartition(" ")[2])


def family(finding: Finding) -> str:
    """Returns the name of a setting without its depth or length."""
    return finding.arm.setting.name.rpartition(",")[0]


def figures(findings: Sequence[Finding]) -> Sequence[Figure]:
    """Returns the norms of the first layer against depth, and the accuracy, a figure a family."""
    made = []
    for name in dict.fromkeys(map(family, findings)):
        here = [one for one in findings if family(one) == name]
        label = "length" if name == "recurrent" else "depth"
        norms = [
            line(here, arm, lambda one, end=end: mean(one, f"first layer, {end}"), f"{arm}, {end}")
            for arm in (NO_CLIP, CLIPPED)
            for end in ("start", "end")
        ]
        scores = [
            line(here, arm, lambda one: 100 * one.chosen.mean, arm) for arm in (NO_CLIP, CLIPPED)
        ]
        title = f"{name}: the gradient of the first layer, before the clip"
        made.append(Figure(f"norms-{name}", title, label, "log10 of the norm", norms))
        title = f"{name}: accuracy"
        made.append(Figure(f"accuracy-by-{label}-{name}", title, label, "accuracy, %", scores))
    return made


def line(
    findings: Sequence[Finding], arm: str, value: Callable[[Finding], Any], name: str
) -> Series:
    """Returns a value of an arm against depth or length."""
    here = [one for one in findings if one.arm.name == arm]
    return Series(
        name, np.array([size_of(one) for one in here]), np.array([value(one) for one in here])
    )


def tables(findings: Sequence[Finding]) -> Sequence[Table]:
    """Returns norms and accuracies, a row an arm."""
    names = list(MEASURES)
    columns = [Column("setting"), Column("arm"), Column("accuracy, %", "{:.2f}")]
    columns += [Column(f"log10: {name}", "{:.2f}") for name in names]
    rows = [
        [
            one.arm.setting.name,
            one.arm.name,
            100 * one.chosen.mean,
            *(mean(one, name) for name in names),
        ]
        for one in findings
    ]
    return [Table("norms", "Norms of gradients before the clip", columns, rows)]


def answer(findings: Sequence[Finding]) -> str:
    """Returns, a line a family, what the largest depth does to the first layer."""
    lines = []
    for name in dict.fromkeys(map(family, findings)):
        here = [one for one in findings if family(one) == name]
        most = max(map(size_of, here))
        bare, clipped = (
            next(one for one in here if size_of(one) == most and one.arm.name == arm)
            for arm in (NO_CLIP, CLIPPED)
        )
        norm = mean(bare, "first layer, start")
        lines.append(
            f"{name}, at {most}: the gradient of the first layer begins with a norm of "
            f"10^{norm:+.1f}; {100 * bare.chosen.mean:.2f} % accuracy without a clip, "
            f"{100 * clipped.chosen.mean:.2f} % with one."
        )
    return "\n".join(lines)


STUDY = Study(
    name="depth",
    question="What does a clip mend where gradients explode, and what where they vanish?",
    arms=arms,
    measures=MEASURES,
    tables=tables,
    figures=figures,
    answer=answer,
    full=COMPRESSION.full,
    quick=COMPRESSION.quick,
)
