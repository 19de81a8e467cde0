import json
import math
import re

import numpy as np
import pytest

from experiments.pages import report
from experiments.studies import catalog, limits, page
from experiments.studies.effects import find_effects
from experiments.studies.search import search
from tests.experiments.studies.test_search import Hill


class Trained(Hill):
    """Trainings whose score falls with the distance to a top of their own, with all measures."""

    def __init__(self, study, gain=0.0, fails=()):
        super().__init__()
        self.study, self.gain, self.fails = study, gain, fails

    def training(self, request, seed):
        arm, point = request.arm, request.point
        away = [
            math.log10(max(point[name], 0.01) / math.sqrt(range.low * range.high or 1))
            for name, range in arm.box.items()
        ]
        noise = 0.004 * math.sin(7 * seed) + 0.004 * math.sin(11 * (seed + 1) * len(arm.name))
        score = 0.9 - 0.1 * sum(x * x for x in away) + noise + self.gain * bool(arm.against)
        made = super().training(request, seed)
        return made._replace(
            setting=arm.setting.name,
            validation=score,
            test=score,
            failed=request.stage == "test" and (arm.name, seed) in self.fails,
            measures=dict.fromkeys(self.study.measures, 1.0),
        )


def pages(name, full=False, **options):
    study = catalog.find(name)
    findings = search(study.arms(full), study.quick, Trained(study, **options))
    return findings, page.page(study, findings, {"command": "typed"})


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_page_of_every_study_holds_what_a_page_has_to(name):
    _, made = pages(name)
    assert made.answer
    assert not re.search(r"\bnan\b", made.answer)
    loaded = report.from_json(json.loads(json.dumps(report.as_json(made), allow_nan=False)))
    report.check(loaded)
    assert report.as_json(loaded) == report.as_json(made)
    names = [table.name.split("-")[0] for table in made.tables]
    assert names[:3] == ["effects", "widths", "points"]


@pytest.mark.parametrize(("gain", "word"), [(0.05, "Yes"), (-0.05, "No, it is worse"), (0, "No d")])
def test_the_answer_begins_with_the_answer(gain, word):
    findings, made = pages("batch_sizes", gain=gain)
    first, *_ = made.answer.splitlines()
    assert first.startswith(word)
    [effect, _] = find_effects(findings)
    assert f"({100 * effect.difference:+.2f} points, 95 % interval" in first
    assert "6 seeds; a difference of" in first
    assert "decades with a clip" in first


def test_the_numbers_of_the_tables_are_those_of_the_effects():
    findings, made = pages("batch_sizes", gain=0.02)
    [effect, _] = find_effects(findings)
    rows = {row[0]: row for row in made.tables[0].rows}
    assert rows["no clip"][2:5] == [None, None, None]
    assert rows["a clip"][2] == pytest.approx(100 * effect.difference)
    assert rows["a clip"][3] == f"{100 * effect.low:+.2f} to {100 * effect.high:+.2f}"
    assert rows["a clip"][1] == pytest.approx(100 * effect.finding.chosen.mean)
    assert made.tables[0].title.endswith("differences to no clip (6 seeds)")


def test_seeds_that_failed_are_told_apart():
    _, made = pages("batch_sizes", fails={("a clip", 0), ("a clip", 3)})
    assert "2 of 6 with mnist, batches of 64: a clip" in made.answer
    assert {row[0]: row[5] for row in made.tables[0].rows} == {"no clip": 0, "a clip": 2}


def test_several_baselines_are_a_column():
    _, made = pages("schedules")
    assert made.tables[0].columns[-1].title == "compared with"
    against = {row[0]: row[-1] for row in made.tables[0].rows}
    assert against["constant limit, falling rate"] == "no clip, falling rate"
    assert against["limit falls on a line, falling rate"] == "constant limit, falling rate"


def test_the_question_of_the_study_is_answered_first():
    _, made = pages("schedules")
    assert "falling rate" in made.answer.splitlines()[0].split("reaches")[0]


def test_an_arm_has_one_color_in_all_figures():
    _, made = pages("batch_sizes")
    palette = report.figures.make_palette(made.figures)
    seen = {}
    for figure in made.figures:
        for trace in report.figures.spec(figure, palette)["data"]:
            if trace.get("name") in ("no clip", "a clip"):
                seen.setdefault(trace["name"], set()).add(trace["marker"]["color"])
    assert {name: len(colors) for name, colors in seen.items()} == {"no clip": 1, "a clip": 1}


def test_the_heat_map_is_that_of_the_points_and_has_a_ridge():
    findings, made = pages("batch_sizes")
    [figure, _] = [figure for figure in made.figures if figure.name.startswith("heat")]
    trained, ridge = figure.series
    clipped = findings[1]
    count = len(clipped.tried) + sum(map(len, clipped.slices.values()))
    assert len(trained.x) == count
    x, y, z = figure.heat
    for index, column in enumerate(np.array(z).T):
        assert ridge.y[index] == y[column.argmax()]
    top = max(clipped.tried, key=lambda one: one.validation)
    near = np.abs(np.log(x / top.point["learning_rate"])).argmin()
    row = np.abs(np.log(y / top.point["limit"])).argmin()
    assert abs(np.array(z)[row, near] - 100 * top.validation) < 3


def test_regrets_are_those_against_the_tuned_limit():
    findings, made = pages("limits", gain=0.0)
    [table] = [table for table in made.tables if table.name == "regrets"]
    tuned = next(one for one in findings if one.arm.name == limits.TUNED)
    for rule, chosen_on, reported_on, here in table.rows:
        finding = next(one for one in findings if one.arm.name == rule)
        assert here == pytest.approx(100 * (tuned.chosen.mean - finding.chosen.mean))
        assert chosen_on == here and reported_on is None


def test_a_rule_is_chosen_on_one_half_and_reported_on_the_other():
    regret = {"a": {"mnist": 0.5, "char_lm": 0.9, "fashion_residual": 3.0}}
    assert limits.worst(regret["a"], limits.CHOSEN_ON) == 0.9
    assert limits.worst(regret["a"], limits.REPORTED_ON) == 3.0
    assert not set(limits.CHOSEN_ON) & set(limits.REPORTED_ON)
