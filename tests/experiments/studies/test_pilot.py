import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from experiments.__main__ import main
from experiments.errors import BadInput
from experiments.options.pilot import Pilot
from experiments.studies import pilot
from experiments.studies.settings import SETTINGS
from experiments.training import train
from experiments.training.config import Config, trial
from experiments.training.train import History
from tests.experiments.line import LINE, Line


def test_a_pilot_tells_the_norms_of_the_training_without_its_clip():
    config = Config(Line(), jaxclip.clip_by_global_norm, batch_size=40, epochs=2)
    told = pilot.pilot(config, trial(seed=3, learning_rate=0.1, limit=1e-3), LINE)

    x, y = map(np.float64, LINE.train)
    start = Line().init(train.keys(3).params)
    params, norms = np.array([start["slope"], start["height"]], float), []
    for _ in range(2):
        error = params[0] * x + params[1] - y
        gradient = 2 * np.array([np.mean(error * x), np.mean(error)])
        norms.append(np.linalg.norm(gradient))
        params = params - 0.1 * gradient
    assert norms[1] < 0.9 * norms[0]  # as a clip to 0.001 would not have it
    seen = [told.percentiles[100], told.percentiles[50]]
    np.testing.assert_allclose(seen, [norms[0], np.mean(norms)], rtol=1e-5)
    assert (told.steps, told.nonfinite) == (2, 0)


def test_the_command_prints_the_advice(tiny_mnist, capsys):
    assert main(["pilot", "mnist", "--epochs", "3"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("3 norms, 0 of them not finite\n")
    for name in ("clip_by_global_norm", "autoclip", "zclip", "skip_on_spike"):
        assert f"\njaxclip.{name}(" in told


def test_options_change_the_setting_and_else_it_is_that_of_the_studies():
    assert Pilot(task="mnist").setting() == SETTINGS["mnist"]
    changed = Pilot(task="mnist", epochs=7, learning_rate=0.25).setting()
    assert changed == dataclasses.replace(SETTINGS["mnist"], epochs=7, learning_rate=0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnst"], "mnst is not a task; did you mean mnist?; there are mnist, "),
        (["mnist", "--epochs", "0"], "--epochs is 0: give 1 or more"),
        (["mnist", "--seed", "4294967296"], "--seed is 4294967296: give a number of 32 bits"),
        (["mnist", "--learning-rate", "nan"], "--learning-rate is nan: give a number of 0 or more"),
        (["mnist", "--learning-rate=-1"], "--learning-rate is -1.0: give a number of 0 or more"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, message, capsys):
    assert main(["pilot", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 1


def test_a_pilot_without_a_finite_norm_says_so(monkeypatch):
    nothing = jnp.full((2, 3), jnp.nan)
    monkeypatch.setattr(
        train, "train", lambda *arguments: History(*[nothing] * len(History._fields))
    )
    with pytest.raises(BadInput, match="the pilot has no advice: there are 6 norms and none is"):
        pilot.pilot(Config(Line(), pilot.no_clip), trial(), LINE)
