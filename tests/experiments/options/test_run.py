import dataclasses
import json
import math

import optax
import pytest

from experiments.errors import BadInput
from experiments.options.clip import Clip
from experiments.options.run import PLACES, RunMnist
from experiments.tasks.mnist import Mnist
from experiments.training import schedules


def test_the_defaults_are_the_main_job():
    config, trial = RunMnist().config(), RunMnist().trial()
    assert config.task == Mnist(hidden=(128,), precision="float32")
    assert config.clip == Clip("clip_by_global_norm")
    assert config.optimizer is optax.sgd
    assert (config.batch_size, config.epochs, config.schedule) == (100, 10, False)
    assert (trial.seed, trial.limit, trial.last_limit) == (0, 1.0, 1.0)
    assert math.isclose(trial.learning_rate, 0.01, rel_tol=1e-6)


def test_numbers_go_to_the_trial_and_the_rest_to_the_config():
    options = RunMnist(limit="cosine:2.0:0.5:0.8", learning_rate=0.1, seed=3)
    assert options.config() == RunMnist(limit="cosine:1.0:0.1").config()
    assert hash(options.config()) == hash(RunMnist(limit="cosine:9:1", seed=4).config())
    assert options.config().schedule
    trial = options.trial()
    assert (trial.seed, trial.limit, trial.last_limit) == (3, 2.0, 0.5)
    assert trial.shape == schedules.shape_number("cosine")
    assert math.isclose(trial.by, 0.8, rel_tol=1e-6)


def test_the_limit_comes_from_the_option_the_text_or_the_default():
    assert RunMnist(limit="0.25").trial().limit == 0.25
    assert RunMnist(clip="clip_by_global_norm(0.5)").trial().limit == 0.5
    assert RunMnist(clip="normalize_by_global_norm").trial().limit == 1.0
    assert RunMnist(clip="normalize_by_global_norm", limit="3").trial().limit == 3.0


@pytest.mark.parametrize(
    "options",
    [
        RunMnist(),
        RunMnist(clip="clip_by_global_norm(0.5)"),
        RunMnist(clip="adaptive_grad_clip"),
        RunMnist(limit="step:1:0.1", hidden=(64, 32)),
    ],
)
def test_what_is_spelled_out_means_the_same(options):
    kept = json.loads(json.dumps(options.identity()))
    assert kept.pop("task") == "mnist"
    again = RunMnist(**{**kept, "hidden": tuple(kept["hidden"])})
    assert again.identity() == options.identity()
    assert again.config() == options.config()
    assert again.trial() == options.trial()


def test_every_option_is_either_spelled_out_or_a_place():
    names = {field.name for field in dataclasses.fields(RunMnist)}
    assert names == (RunMnist().identity().keys() - {"task"}) | set(PLACES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunMnist(limit="-1"), "`limit` is -1.0"),
        (RunMnist(limit="nan"), "`limit` is nan"),
        (RunMnist(limit="linear:1:-0.5"), "`limit` is -0.5"),
        (RunMnist(clip="adaptive_grad_clip", limit="1"), "takes no limit"),
        (RunMnist(clip="clip_by_value(1.0)", limit="1"), "given twice"),
        (RunMnist(clip="clip_by_global_norm(ord='x')"), "`ord` is 'x'"),
        (RunMnist(batch_size=0), "--batch-size is 0"),
        (RunMnist(epochs=-1), "--epochs is -1"),
        (RunMnist(hidden=(128, 0)), "--hidden"),
        (RunMnist(learning_rate=-0.1), "--learning-rate"),
        (RunMnist(learning_rate=math.nan), "--learning-rate"),
        (RunMnist(seed=2**31), "--seed"),
        (RunMnist(until_loss=-1.0), "--until-loss"),
        (RunMnist(until_loss=math.inf), "--until-loss"),
        (RunMnist(patience=0), "--patience"),
    ],
)
def test_options_that_mean_nothing_are_told(options, message):
    with pytest.raises(BadInput, match=message):
        options.check()
