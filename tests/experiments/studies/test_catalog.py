import math

import pytest

from experiments.errors import BadInput
from experiments.studies import catalog
from experiments.studies.search import propose
from experiments.sweeps import grid


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_arms_of_every_study_are_told_apart_and_can_be_tuned(name, full):
    asked = catalog.find(name)
    assert asked.name == name
    made = asked.arms(full)
    assert len({arm.slug for arm in made}) == len(made) > 1
    for arm in made:
        assert hash(arm.setting) and hash(arm.config)
        assert "learning_rate" in arm.box
        points = propose(arm, dict(arm.box), 4, 0)
        assert len({tuple(point.items()) for point in points}) == 4
        grid.stack(points)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_what_every_arm_is_compared_with_is_an_arm_of_its_setting(name):
    made = catalog.find(name).arms(True)
    names = {(arm.setting.name, arm.name) for arm in made}
    for arm in made:
        assert not arm.against or (arm.setting.name, arm.against) in names
        if not arm.against:
            assert math.isinf(arm.fixed["limit"]), "a baseline is no clip"
    assert {arm.setting.name for arm in made} == {
        arm.setting.name for arm in made if not arm.against
    }


def test_the_ways_of_a_schedule_are_one_program():
    made = [arm for arm in catalog.find("schedules").arms(True) if arm.setting.name == "char_lm"]
    assert len(made) == 12
    assert len({arm.config for arm in made}) == 1


def test_a_study_is_what_is_asked_for():
    with pytest.raises(BadInput, match="is not a study; there are schedules"):
        catalog.find("nothing_like_it")
