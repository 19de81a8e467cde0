import dataclasses
import doctest
import math

import numpy as np
import pytest

from experiments.studies import arms
from experiments.studies.arms import Arm, Outcome, Range
from experiments.studies.settings import Setting
from experiments.training.config import Config
from tests.experiments.line import Line
from tests.experiments.studies.test_records import ONE


def test_the_examples_run():
    assert doctest.testmod(arms).failed == 0


@pytest.mark.parametrize(
    "numbers", [(1.0, 0.1), (0.0, 1.0), (0.5, 2.0, True, 1.0), (0.5, 2.0, True, 0.0, 1.0)]
)
def test_a_range_has_a_lower_and_an_upper_end(numbers):
    with pytest.raises(ValueError, match="is no range"):
        Range(*numbers)


def test_failed_trainings_count_apart_from_the_score():
    good = ONE._replace(failed=False, test=0.8, validation=0.6)
    setting = Setting("line", Line(), norm=1.0, floor=0.0)
    arm = Arm("a", setting, Config(Line(), None), {})
    outcome = Outcome(arm, "test", {}, [good, ONE._replace(test=0.9), good._replace(test=0.6)])
    assert outcome.failed == 1
    np.testing.assert_array_equal(outcome.scores, [0.8, math.nan, 0.6])
    assert math.isclose(outcome.mean, 0.7)
    assert math.isclose(outcome.validation, 0.4), "one that failed is as good as nothing learned"
    assert math.isnan(outcome._replace(trainings=[ONE]).mean)
    np.testing.assert_array_equal(outcome.measure("recovery"), [7, 7, 7])


def test_all_arms_of_a_form_have_one_budget():
    for design in (arms.QUICK, arms.LIGHT, arms.FULL):
        assert design.points & (design.points - 1) == 0, "Sobol's sequences are even in powers of 2"
        assert design.rounds <= design.most_rounds
        assert all(number > 0 for number in dataclasses.asdict(design).values())
