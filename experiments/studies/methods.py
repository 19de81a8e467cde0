"""Every public method on every setting, each at the best of its own grid."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

import jaxclip
from experiments.pages.report import Column, Table
from experiments.pages.series import Figure
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.page import comparison_figure
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Arm, Outcome, Study, best, by_setting, sort_key, verdict


def arms(full: bool) -> Sequence[Arm]:
    """Returns all named methods, five points each, on the settings of the form."""
    settings = list(SETTINGS.values()) if full else [SETTINGS["mnist"]]
    return [
        one
        for setting in settings
        for one in (
            unclipped_arm(setting),
            *(make_arm(method, setting) for method in jaxclip.named()),
        )
    ]


def figures(outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """Returns the methods side by side, a figure a setting."""
    return [
        comparison_figure(here, f"best-{setting}", f"{setting}: each at its best")
        for setting, here in by_setting(best(outcomes)).items()
    ]


def rank_table(outcomes: Sequence[Outcome]) -> Sequence[Table]:
    """Returns the rank of every method on every setting, and its mean; 1 is best."""
    groups = by_setting(best(outcomes))
    ranked = {}
    for setting, here in groups.items():
        places = stats.rankdata([-sort_key(one.mean) for one in here])
        ranked[setting] = {one.arm.name: place for one, place in zip(here, places, strict=True)}
    methods = dict.fromkeys(name for places in ranked.values() for name in places)
    rows = [
        [name, float(np.mean([places[name] for places in ranked.values()]))]
        + [float(places[name]) for places in ranked.values()]
        for name in methods
    ]
    columns = [Column("clip"), Column("mean rank", "{:.2f}")]
    columns += [Column(setting, "{:.1f}") for setting in groups]
    return [Table("ranks", "Ranks by accuracy", columns, sorted(rows, key=lambda row: row[1]))]


STUDY = Study(
    name="methods",
    question="Which method is best on which task, when each may choose from five values of its own "
    "number?",
    arms=arms,
    figures=figures,
    answer=verdict,
    tables=rank_table,
)
