import contextlib
import dataclasses
import importlib.util
import json
import math
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from experiments import private, runs
from experiments.__main__ import main
from experiments.data import Data
from experiments.errors import BadInput
from experiments.private_options import RunPrivate


@dataclasses.dataclass(frozen=True)
class Dot:
    """A task in which the gradient of an example is the example."""

    def data(self, folder=None):
        return EXAMPLES

    def init(self, key):
        return jnp.zeros(2)

    def loss(self, params, batch):
        return jnp.mean(batch @ params)

    def score(self, params, test):
        return params[0]


ROWS = np.array([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0], [0.0, 0.5], [9.0, 12.0]], np.float32)
CLIPPED = np.array([[0.6, 0.8], [0.3, 0.4], [-0.6, 0.8], [0.0, 0.5], [0.6, 0.8]], np.float32)
EXAMPLES = Data(train=ROWS, test=ROWS)


def silent(stddev, key):
    return optax.identity()


def plan(**changes):
    """Every example in each batch, and no noise, unless the changes say otherwise."""
    whole = private.Plan(
        task=Dot(),
        limit=1.0,
        multiplier=0.0,
        probability=1.0,
        batch_size=4,
        room=8,
        steps=1,
        epochs=1,
        learning_rate=0.5,
        noise=silent,
    )
    return dataclasses.replace(whole, **changes)


def one_epoch(plan, seed=0, data=EXAMPLES):
    state = private.init(plan, jnp.int32(seed))
    return jax.jit(private.epoch, static_argnums=0)(plan, jnp.int32(seed), data, state)


@contextlib.contextmanager
def needing(package):
    """Runs what needs a package; where it is absent, that has to be told."""
    if importlib.util.find_spec(package):
        yield
    else:
        with pytest.raises(BadInput, match=r"jaxclip\[privacy\]"):
            yield


def rdp_epsilon(multiplier, probability, steps, delta):
    """The epsilon of Mironov, Talwar, Zhang 2019, arXiv 1908.10530, (3) at whole orders.

    From there to epsilon by Canonne, Kamath, Steinke 2020, arXiv 2004.00010, proposition 12.
    """
    bounds = []
    for order in range(2, 128):
        k = np.arange(order + 1)
        terms = stats.binom.logpmf(k, order, probability) + k * (k - 1) / (2 * multiplier**2)
        divergence = steps * np.logaddexp.reduce(terms) / (order - 1)
        more = math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        bounds.append(divergence + more)
    return min(bounds)


def test_the_noise_is_what_renyi_accounting_by_hand_makes_it():
    """PLD is tighter than RDP, by 5 to 10 % here: the least noise has to be a little below."""
    probability, steps, delta = 2048 / 60000, 580, 1e-5
    with needing("dp_accounting"):
        multiplier = private.noise_multiplier(2.0, delta, probability, steps)
        assert rdp_epsilon(multiplier, probability, steps, delta) > 2.0
        assert rdp_epsilon(1.12 * multiplier, probability, steps, delta) < 2.0


def test_without_subsampling_the_noise_is_that_of_the_gaussian_mechanism():
    """Balle, Wang 2018, arXiv 1805.06530, theorem 8: the exact delta of a sensitivity of 1."""
    with needing("dp_accounting"):
        multiplier = private.noise_multiplier(1.0, 1e-5, 1.0, 4)
        mu = 2 / multiplier  # four steps are one of half the noise
        delta = stats.norm.cdf(mu / 2 - 1 / mu) - math.e * stats.norm.cdf(-mu / 2 - 1 / mu)
        np.testing.assert_allclose(delta, 1e-5, rtol=0.01)


def test_so_much_privacy_takes_hardly_any_noise():
    with needing("dp_accounting"):
        assert private.noise_multiplier(1e4, 1e-5, 0.01, 2) == private.LEAST_NOISE


def test_jax_privacy_adds_noise_of_the_limit_times_the_multiplier():
    """Of 90,000 entries the spread is known to 0.24 %; strictness is ours, not of that package."""
    wide = plan(multiplier=1.5, limit=0.2, learning_rate=1.0, batch_size=10, noise=private.gaussian)
    params = jnp.zeros((300, 300))
    with (
        needing("jax_privacy"),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        rule = private.optimizer(wide, jax.random.key(0))
        state = rule.init(params)
        one, state = rule.update(params, state)
        two, _ = rule.update(params, rule.init(params))
        np.testing.assert_allclose(jnp.std(one), 1.5 * 0.2 / 10, rtol=0.01)
        np.testing.assert_allclose(jnp.mean(one), 0, atol=4 * 0.03 / 300)
        assert jnp.array_equal(one, two)
        other, _ = rule.update(params, state)
        with_momentum = other - 0.9 * one
        assert abs(np.corrcoef(np.ravel(with_momentum), np.ravel(one))[0, 1]) < 4 / 300


def test_the_noise_that_is_asked_for_is_sigma_times_the_limit():
    asked = []

    def noise(stddev, key):
        asked.append(stddev)
        return optax.identity()

    private.optimizer(plan(multiplier=1.5, limit=0.2, noise=noise), jax.random.key(0))
    assert asked == [pytest.approx(0.3)]


def test_without_noise_a_step_is_the_sum_of_clipped_gradients_by_the_expected_size():
    state, history = one_epoch(plan())
    # Five came, and four were expected.
    np.testing.assert_allclose(state.params, -0.5 * CLIPPED.sum(0) / 4, rtol=1e-5)
    np.testing.assert_allclose(history.clipped, [3 / 5])
    norms = np.linalg.norm(ROWS, axis=1)
    np.testing.assert_allclose(history.norm, [np.sqrt(np.mean(norms**2))], rtol=1e-5)


def test_an_example_more_moves_the_sum_by_no_more_than_the_limit():
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(0, 10, (64, 2)) ** 3, jnp.float32)
    everyone = jnp.ones(64, bool)
    whole, _ = private.clipped_sum(plan(limit=0.25), jnp.zeros(2), batch, everyone)
    moves = [
        jnp.linalg.norm(
            whole
            - private.clipped_sum(plan(limit=0.25), jnp.zeros(2), batch, everyone.at[i].set(False))[
                0
            ]
        )
        for i in range(4)
    ]
    assert max(moves) <= 0.25 * (1 + 1e-4)
    assert min(moves) > 0.2


def test_padding_counts_for_nothing():
    batch = jnp.asarray(ROWS).at[3:].set(jnp.nan)
    total, info = private.clipped_sum(plan(), jnp.zeros(2), batch, jnp.arange(5) < 3)
    np.testing.assert_allclose(total, CLIPPED[:3].sum(0), rtol=1e-5)
    assert not info.clipped[3:].any()


def test_every_example_is_sampled_alone_with_the_probability():
    """Of 4,000 batches of 50 examples, within five standard errors."""
    probability = 0.3
    keys = jax.random.split(jax.random.key(0), 4000)
    rows, mask = jax.vmap(lambda key: private.sample(key, 50, probability, 50))(keys)
    drawn = np.zeros((4000, 50))
    np.add.at(drawn, (np.repeat(np.arange(4000), 50), np.ravel(rows)), np.ravel(mask))
    assert drawn.max() == 1  # no example is twice in a batch
    error = math.sqrt(probability * (1 - probability) / 4000)
    assert np.abs(drawn.mean(0) - probability).max() < 5 * error
    sizes = drawn.sum(1)
    variance = 50 * probability * (1 - probability)
    np.testing.assert_allclose(sizes.var(), variance, rtol=5 * math.sqrt(2 / 4000))
    correlation = np.corrcoef(drawn.T) - np.eye(50)
    assert np.abs(correlation).max() < 6 / math.sqrt(4000)


def test_what_has_no_room_is_dropped_and_what_has_is_kept():
    rows, mask = private.sample(jax.random.key(0), 10, 1.0, 4)
    assert mask.all()
    assert len(set(rows.tolist())) == 4
    _, none = private.sample(jax.random.key(0), 10, 0.0, 4)
    assert not none.any()


def test_there_is_room_for_all_but_what_delta_pays_for():
    epsilon, delta, probability, steps, examples = 2.0, 1e-8, 2048 / 60000, 580, 60000
    room = private.room(epsilon, delta, probability, steps, examples)

    def cost(room):
        return (1 + math.exp(epsilon)) * steps * stats.binom.sf(room, examples + 1, probability)

    assert cost(room) <= delta < cost(room - 1)
    assert 2048 < room < 1.2 * 2048
    assert private.room(epsilon, delta, 1.0, steps, 50) == 50
    assert private.room(1e6, delta, probability, steps, 100) <= 100


def test_the_seed_decides_and_every_epoch_draws_anew(equal):
    half = plan(probability=0.5, steps=6)
    first, history = one_epoch(half)
    again, _ = one_epoch(half)
    other, _ = one_epoch(half, seed=1)
    assert equal(first, again)
    assert not equal(first.params, other.params)
    _, later = jax.jit(private.epoch, static_argnums=0)(half, jnp.int32(0), EXAMPLES, first)
    assert not equal(history.norm, later.norm)


@pytest.mark.slow
def test_the_command_leaves_a_folder_that_tells_all(tiny_mnist, monkeypatch, capsys):
    monkeypatch.setattr(private, "noise_multiplier", lambda *target: 0.5)
    monkeypatch.setattr(private, "needed", lambda module: None)
    monkeypatch.setattr(private, "plan", quiet(private.plan))
    monkeypatch.setattr(private.metadata, "version", lambda package: "0")
    options = RunPrivate(batch_size=50, epochs=2, learning_rate=1.0, out=Path("run"))
    result = private.command(options, "the command")
    assert json.loads(Path("run/result.json").read_text()) == result
    assert json.loads(Path("run/config.json").read_text()) == {
        **options.spelled_out(),
        "command": "the command",
    }
    assert Path("run/versions.json").exists()
    assert result["noise_multiplier"] == 0.5
    assert result["steps"] == 2 * 4
    told = capsys.readouterr().out
    assert "at epsilon 2, delta 1e-05  (noise multiplier 0.500, examples clipped" in told
    assert f"Accuracy: {100 * result['accuracy']:.2f} %" in told


@pytest.fixture
def without_packages(tiny_mnist, monkeypatch):
    """Puts no noise and no accounting in the place of the packages."""
    monkeypatch.setattr(private, "noise_multiplier", lambda *target: 0.5)
    monkeypatch.setattr(private, "needed", lambda module: None)
    monkeypatch.setattr(private, "plan", quiet(private.plan))
    monkeypatch.setattr(private.metadata, "version", lambda package: "0")


def test_a_private_run_that_stops_ends_as_if_it_had_not(without_packages, monkeypatch, capsys):
    options = ["--batch-size", "50", "--epochs", "3", "--learning-rate", "1.0", "--seed", "4"]
    start = ["run", "mnist-private", *options]
    assert main([*start, "--out", "whole"]) == 0
    save = runs.Run.save

    def stop(self, state, made_by):
        if state.epoch == 3:
            raise KeyboardInterrupt
        save(self, state, made_by)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "save", stop)
        assert main([*start, "--out", "stopped"]) == 130
    told = capsys.readouterr().err
    again = shlex.split(told.removeprefix("stopped; to continue: "))[3:]
    assert again == ["run", "mnist-private", "--resume", "stopped"]
    assert main(again) == 0
    assert "epoch 3/3" in capsys.readouterr().out
    whole, stopped = (
        json.loads(Path(name, "result.json").read_text()) for name in ("whole", "stopped")
    )
    times = {"seconds": 0, "accounting_seconds": 0}
    assert {**stopped, **times} == {**whole, **times}
    texts = [Path(name, "metrics.jsonl").read_text() for name in ("whole", "stopped")]
    assert texts[0] == texts[1]
    # Ended, it only says so again; with other options it is another run.
    assert main(again) == 0
    assert main([*again, "--epsilon", "3"]) == 2
    assert "--epsilon is 3.0 here and 2.0 there" in capsys.readouterr().err
    assert main(["run", "mnist", "--resume", "stopped"]) == 2
    assert "that of a run of mnist-private, not of mnist" in capsys.readouterr().err


def test_a_share_of_examples_is_not_called_a_share_of_steps(without_packages, capsys):
    options = ["--batch-size", "50", "--epochs", "1", "--limit", "4.0", "--out", "run"]
    assert main(["run", "mnist-private", *options]) == 0
    *_, epoch, end, _ = capsys.readouterr().out.splitlines()
    share = re.search(r"examples clipped \S+ %", epoch)
    assert share
    assert share[0] in end
    assert "clip rate" not in epoch + end
    result = json.loads(Path("run/result.json").read_text())
    assert share[0] == f"examples clipped {100 * result['examples_clipped']:.1f} %"
    assert result["examples_clipped"] < result["clip_rate"] == 1


def quiet(make):
    return lambda *arguments: dataclasses.replace(make(*arguments), noise=silent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "--epsilon is 0.0: give a number above 0"),
        ({"epsilon": -1.0}, "--epsilon is -1.0"),
        ({"epsilon": math.nan}, "--epsilon is nan"),
        ({"delta": 0.0}, "--delta is 0.0: give a probability between 0 and 1"),
        ({"delta": 1.0}, "--delta is 1.0"),
        ({"limit": 0.0}, "--limit is 0.0"),
        ({"learning_rate": math.inf}, "--learning-rate is inf"),
        ({"batch_size": 0}, "--batch-size is 0: give 1 or more"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"seed": 2**31}, "--seed is 2147483648"),
    ],
)
def test_bad_input_is_told_in_a_line(change, message):
    with pytest.raises(BadInput) as told:
        private.command(RunPrivate(**change))
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


def test_a_batch_has_no_more_than_there_is():
    with pytest.raises(BadInput, match="--batch-size is 2048, and there are 200 examples"):
        private.plan(RunPrivate(), 200)


@pytest.mark.parametrize("package", ["jax_privacy", "dp_accounting"])
def test_a_missing_package_is_told_with_its_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=r"install 'jaxclip\[privacy\]'"):
        private.command(RunPrivate())
