"""Every public method on every setting, each tuned over the learning rate and its number."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

import jaxclip
from experiments.pages.report import Column, Table
from experiments.studies.arms import LIGHT, Arm
from experiments.studies.effects import by_setting
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.search import Finding
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Study

NAMES = ("mnist", "mnist_deep", "mnist_heavy_tails", "mnist_huge_examples", "cartpole")


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip and all named methods, on the settings of the form."""
    settings = [SETTINGS[name] for name in (NAMES if full else NAMES[:1])]
    return [
        one
        for setting in settings
        for one in (
            unclipped_arm(setting),
            *(make_arm(method, setting) for method in jaxclip.named()),
        )
    ]


def rank_table(findings: Sequence[Finding]) -> Sequence[Table]:
    """Returns the rank of every arm on every setting, and its mean; 1 is best."""
    groups = by_setting(findings)
    ranked = {}
    for setting, here in groups.items():
        places = stats.rankdata([-np.nan_to_num(one.chosen.mean) for one in here])
        ranked[setting] = {one.arm.name: place for one, place in zip(here, places, strict=True)}
    methods = dict.fromkeys(name for places in ranked.values() for name in places)
    rows = [
        [name, float(np.mean([places[name] for places in ranked.values()]))]
        + [float(places[name]) for places in ranked.values()]
        for name in methods
    ]
    columns = [Column("arm"), Column("mean rank", "{:.2f}")]
    columns += [Column(setting, "{:.1f}") for setting in groups]
    return [Table("ranks", "Ranks by accuracy", columns, sorted(rows, key=lambda row: row[1]))]


STUDY = Study(
    name="methods",
    question="Which method is best on which task, each tuned over the learning rate and its own "
    "number?",
    arms=arms,
    tables=rank_table,
    full=LIGHT,
)
