import pytest

from experiments.errors import BadInput
from experiments.studies import catalog
from experiments.sweeps import grid


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_arms_of_every_study_are_told_apart_and_can_be_tuned(name, full):
    asked = catalog.find(name)
    assert asked.name == name
    made = asked.arms(full)
    assert len({arm.slug for arm in made}) == len(made) > 1
    for arm in made:
        grid.stack(arm.grid)
        assert hash(arm.setting)
    tuned = {len(arm.grid) for arm in made if arm.knob}
    assert len(tuned) == 1, "every arm has the same budget"


def test_a_study_is_what_is_asked_for():
    with pytest.raises(BadInput, match="is not a study; there are schedules"):
        catalog.find("nothing_like_it")
