import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from experiments.errors import BadInput
from experiments.studies import catalog
from experiments.studies.search import propose
from experiments.sweeps import grid
from experiments.training import train
from experiments.training.config import trial


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
    made = [arm for arm in catalog.find("schedules").arms(True) if arm.setting.name == "cartpole"]
    assert len(made) == 12
    assert len({arm.config for arm in made}) == 1


def test_a_study_is_what_is_asked_for():
    with pytest.raises(BadInput, match="is not a study; there are optimizers"):
        catalog.find("nothing_like_it")


def few(made):
    """Arms that have every clip and every optimizer among them, whatever the task is."""
    seen = set()
    for arm in made:
        config = arm.config
        parts = {config.clip, config.optimizer, (config.clip_last, config.per_example)}
        if not parts <= seen:
            seen |= parts
            yield arm


@pytest.mark.wide
@pytest.mark.slow
@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_optimizer_of_every_study_can_be_traced(name, tiny_mnist):
    study = catalog.find(name)
    for arm in few(study.arms(True)):
        config = dataclasses.replace(arm.config, batch_size=20, epochs=1)
        data = arm.setting.data({})
        little = data._replace(train=jax.tree.map(lambda x: x[:40], data.train))
        numbers = arm.point({name: range.low for name, range in arm.box.items()})
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            history = jax.eval_shape(
                functools.partial(train.train, config), trial(**numbers), little
            )
        assert history.loss.shape == (1, 2), arm.title
        # As if it had more steps: spikes and parts of a training need them.
        measured = jax.tree.map(
            lambda x: np.ones((1, 2000) if x.shape == (1, 2) else x.shape, x.dtype), history
        )
        for measure in study.measures.values():
            float(measure(measured))
