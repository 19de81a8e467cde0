import dataclasses
import math

import numpy as np
import pytest

from experiments.studies import search
from experiments.studies.arms import Arm, Design, Outcome, Range, Training
from experiments.studies.settings import Setting
from experiments.training.config import Config
from tests.experiments.line import Line

SETTING = Setting("line", Line(), norm=1.0)
RATE, LIMIT = Range(0.1, 10.0), Range(0.01, 1.0)
DESIGN = Design(points=16, tuning_seeds=1, rounds=2, most_rounds=4, finalists=2, seeds=3)


def arm(name="a clip", setting=SETTING, **box):
    box = box or {"learning_rate": RATE, "limit": LIMIT}
    return Arm(name, setting, Config(Line(), None), box)


class Hill:
    """Trainings whose score falls with the distance in decades from a top, and the seeds' noise."""

    def __init__(self, clip_rate=0.5, **top):
        self.top, self.clip_rate, self.asked = top, clip_rate, []

    def __call__(self, requests):
        self.asked += requests
        return [
            Outcome(one.arm, one.stage, one.point, [self.training(one, seed) for seed in one.seeds])
            for one in requests
        ]

    def training(self, request, seed):
        away = [math.log10(request.point[name] / top) for name, top in self.top.items()]
        score = 0.9 - 0.1 * sum(x * x for x in away) + 0.001 * math.sin(seed)
        return Training(
            request.stage, "line", request.arm.name, request.point, seed,
            score, score, 0.0, self.clip_rate, False, 0.0, {},
        )  # fmt: skip


def test_a_top_inside_the_box_is_found():
    hill = Hill(learning_rate=2.0, limit=0.05)
    [found] = search.search([arm()], DESIGN, hill)
    assert found.rounds == 2
    assert not found.edges
    assert abs(math.log10(found.chosen.point["learning_rate"] / 2)) < 0.2
    assert abs(math.log10(found.chosen.point["limit"] / 0.05)) < 0.2


def test_the_box_moves_to_a_top_outside_of_it():
    [found] = search.search([arm()], DESIGN, Hill(learning_rate=60.0, limit=0.05))
    assert found.rounds > 2
    assert not found.edges
    assert abs(math.log10(found.chosen.point["learning_rate"] / 60)) < 0.4


def test_a_top_too_far_away_is_told_after_the_last_round():
    [found] = search.search([arm()], DESIGN, Hill(learning_rate=1e9, limit=0.05))
    assert (found.rounds, found.edges) == (4, ["learning_rate"])


def test_where_the_clip_never_acts_its_limit_has_no_edge():
    [found] = search.search([arm()], DESIGN, Hill(clip_rate=0.0, learning_rate=1.0, limit=1e9))
    assert (found.rounds, found.edges) == (2, [])


def test_a_number_stays_within_what_it_can_be():
    box = {"learning_rate": RATE, "limit": Range(0.1, 0.9, log=False, least=0.01, most=0.999)}
    hill = Hill(learning_rate=1.0, limit=100.0)
    [found] = search.search([arm(**box)], DESIGN, hill)
    assert 0.9 < max(one.point["limit"] for one in hill.asked) <= 0.999
    assert search.from_scale(box["limit"], 3.0) == 0.999
    assert found.edges == []


def test_all_arms_of_a_setting_have_the_same_budget():
    elsewhere = dataclasses.replace(SETTING, name="elsewhere")
    arms = [arm("near", learning_rate=RATE), arm("far", learning_rate=Range(1e-4, 1e-3))]
    arms.append(arm("near", elsewhere, learning_rate=RATE))
    hill = Hill(learning_rate=1.5)
    found = search.search(arms, DESIGN, hill)
    tuned = [one for one in hill.asked if one.stage.startswith(("round", "finalists"))]
    counts = [sum(one.arm.title == arm.title for one in tuned) for arm in arms]
    assert counts[0] == counts[1] > counts[2]
    assert [one.rounds for one in found] == [3, 3, 2] or found[0].rounds == 4


def test_the_rates_of_a_round_are_the_same_for_all_arms():
    one, two = arm(learning_rate=RATE), arm()
    rates = [
        {point["learning_rate"] for point in search.propose(each, dict(each.box), 16, 0)}
        for each in (one, two)
    ]
    assert rates[0] == rates[1]
    assert len(rates[0]) == 16


def test_no_round_repeats_a_point():
    points = [
        tuple(point.values()) for n in range(4) for point in search.propose(arm(), arm().box, 16, n)
    ]
    assert len(set(points)) == 64


def test_every_number_has_three_digits():
    for point in search.propose(arm(), arm().box, 16, 0):
        assert all(float(f"{value:.3g}") == value for value in point.values())


def test_the_reported_seeds_have_chosen_nothing():
    hill = Hill(learning_rate=1.0, limit=0.1)
    [found] = search.search([arm()], DESIGN, hill)
    used = {seed for one in hill.asked if one.stage != "test" for seed in one.seeds}
    assert [one.seed for one in found.chosen.trainings] == [0, 1, 2]
    assert used.isdisjoint({0, 1, 2})
    stages = {}
    for one in hill.asked:
        stages.setdefault(one.stage.split(" ")[0], set()).update(one.seeds)
    assert len(set().union(*stages.values())) == sum(map(len, stages.values()))


def test_a_slice_changes_one_number_and_holds_the_chosen_one():
    [found] = search.search([arm()], DESIGN, Hill(learning_rate=1.0, limit=0.1))
    for name, outcomes in found.slices.items():
        values = [one.point[name] for one in outcomes]
        assert values == sorted(values)
        assert found.chosen.point[name] in values
        assert math.log10(values[-1] / values[0]) == pytest.approx(3, abs=0.01)
        [other] = {"learning_rate", "limit"} - {name}
        assert {one.point[other] for one in outcomes} == {found.chosen.point[other]}


def test_a_finalist_with_better_further_seeds_wins():
    class Lucky(Hill):
        def training(self, request, seed):
            made = super().training(request, seed)
            lucky = made.point["learning_rate"] > 1 and seed >= search.FINALISTS
            return made._replace(validation=made.validation + 0.5 * lucky)

    design = dataclasses.replace(DESIGN, finalists=8)
    hill = Lucky(learning_rate=0.9)
    [found] = search.search([arm(learning_rate=RATE)], design, hill)
    best = search.best(found.tried).point["learning_rate"]
    assert best < 1 < found.chosen.point["learning_rate"]


def test_a_range_of_the_next_round_is_centered():
    inside = search.recenter(RATE, 2.0)
    assert math.log10(inside.high / inside.low) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(math.sqrt(inside.low * inside.high), 2.0, rtol=0.01)
    outside = search.recenter(RATE, 9.0)
    assert math.log10(outside.high / outside.low) == pytest.approx(2, abs=0.01)
