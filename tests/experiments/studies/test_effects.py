import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from experiments.errors import BadInput
from experiments.studies import effects
from experiments.studies.arms import Arm, Outcome, Range, Training
from experiments.studies.search import Finding
from experiments.studies.settings import Setting
from experiments.training.config import Config
from tests.experiments.line import Line

SETTING = Setting("line", Line(), norm=1.0)
RNG = np.random.default_rng(0)
BASE = 0.9 + 0.01 * RNG.normal(size=8)
GAIN = 0.02 + 0.01 * RNG.normal(size=8)


def training(score, seed=0, failed=False, **point):
    return Training("test", "line", "arm", point, seed, score, score, 0.1, 0.5, failed, 1.0, {})


def finding(name, scores, against="no clip", failed=(), setting=SETTING):
    arm = Arm(name, setting, Config(Line(), None), {"learning_rate": Range(0.1, 1.0)}, {}, against)
    rows = [training(score, seed, seed in failed) for seed, score in enumerate(scores)]
    return Finding(arm, [], Outcome(arm, "test", {}, rows), {}, 1, [])


def test_an_effect_has_the_interval_and_the_p_value_of_its_pairs():
    base, arm = finding("no clip", BASE, ""), finding("clip", BASE + GAIN)
    [effect] = effects.find_effects([base, arm])
    reference = stats.ttest_1samp(GAIN, 0)
    low, high = reference.confidence_interval(0.95)
    np.testing.assert_allclose(
        [effect.difference, effect.low, effect.high], [GAIN.mean(), low, high]
    )
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    expected = np.mean(np.abs(signs @ GAIN) >= abs(GAIN.sum()) - 1e-12)
    np.testing.assert_allclose(effect.q, expected)
    assert effect.seen
    assert (effect.baseline, effect.pairs) == (base, 8)


def test_a_detectable_difference_is_seen_four_times_in_five():
    noise = np.random.default_rng(1)
    seen = []
    for _ in range(400):
        pairs = noise.normal(size=16)
        # At the true deviation, which the sample's stands for.
        shift = (stats.t.ppf(0.975, 15) + stats.t.ppf(0.8, 15)) / 4
        seen.append(stats.ttest_1samp(pairs + shift, 0).pvalue < 0.05)
    assert 0.74 < np.mean(seen) < 0.86
    _, _, told = effects.estimate(pairs)
    np.testing.assert_allclose(told, shift * 4 * stats.sem(pairs))


def test_failures_are_counted_apart_from_the_scores():
    base = finding("no clip", BASE, "", failed=range(6))
    arm = finding("clip", np.where(np.arange(8) < 6, 0.1, BASE + GAIN))
    [effect] = effects.find_effects([base, arm])
    assert effect.pairs == 2
    np.testing.assert_allclose(effect.difference, GAIN[6:].mean())
    # All six seeds that fail in one alone fail in the same one: 2 / 2^6, and one more test.
    np.testing.assert_allclose(effect.failures_q, 2 * 2 / 64)


def test_nothing_is_left_to_compare_where_all_fail():
    base, arm = finding("no clip", BASE, "", failed=range(8)), finding("clip", BASE)
    [effect] = effects.find_effects([base, arm])
    assert math.isnan(effect.difference) and math.isnan(effect.q) and effect.pairs == 0
    assert effect.failures_q < 0.05 and not effect.seen


def test_false_discoveries_are_controlled_over_the_page():
    elsewhere = dataclasses.replace(SETTING, name="elsewhere")
    arms = [finding("no clip", BASE, ""), finding("clip", BASE + GAIN)]
    scores = BASE + 0.01 * RNG.normal(size=(9, 8))
    noise = [finding(f"n{i}", row, setting=elsewhere) for i, row in enumerate(scores)]
    alone = effects.find_effects(arms)[0].q
    arms += [finding("no clip", BASE, "", setting=elsewhere), *noise]
    together = effects.find_effects(arms)
    np.testing.assert_allclose(together[0].q, 10 * alone)


def test_a_baseline_that_is_not_there_is_told():
    with pytest.raises(BadInput, match="compared with no clop, which is no arm"):
        effects.find_effects([finding("clip", BASE, "no clop"), finding("no clip", BASE, "")])


def slice_of(scores, values, log=True, failed=()):
    arm = Arm("a", SETTING, Config(Line(), None), {"limit": Range(1.0, 100.0, log)})
    return [
        Outcome(arm, "width", {"limit": value}, [training(score, failed=index in failed)])
        for index, (score, value) in enumerate(zip(scores, values, strict=True))
    ]


def test_a_width_is_read_between_the_points():
    values = [0.01, 0.1, 1.0, 10.0, 100.0]
    width = effects.find_width(slice_of([0.1, 0.88, 0.9, 0.895, 0.1], values), "limit")
    # 0.89 is crossed half of the way between 0.1 and 1, and 5/795 of the way beyond 10.
    np.testing.assert_allclose(np.log10(width.low), -0.5)
    np.testing.assert_allclose(width.decades, 1.5 + 5 / 795)
    assert not width.open


def test_a_width_that_never_ends_is_open():
    width = effects.find_width(slice_of([0.9, 0.9, 0.9], [1, 10, 100]), "limit")
    assert (width.low, width.high, width.decades, width.open) == (1, 100, 2, True)
    linear = effects.find_width(slice_of([0.1, 0.9, 0.1], [1, 10, 100], log=False), "limit")
    assert math.isnan(linear.decades)
    assert 1 < linear.low < 10 < linear.high < 100


def test_a_dip_ends_the_width_that_works():
    scores = [0.9, 0.1, 0.9, 0.91, 0.1]
    width = effects.find_width(slice_of(scores, [0.01, 0.1, 1, 10, 100]), "limit")
    assert 0.1 < width.low <= 1


def test_no_width_where_every_training_failed():
    failed = slice_of([0.1, 0.1], [1, 10], failed=(0, 1))
    assert effects.find_width(failed, "limit") is None
