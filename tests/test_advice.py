import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import advice

RNG = np.random.default_rng(0)
STEADY = RNG.lognormal(0, 0.3, 400)
BLOCKS = RNG.lognormal(0, 0.3, (400, 3)) * [1.0, 2.0, 4.0]


@pytest.fixture(scope="module")
def steady():
    return jaxclip.advise(STEADY)


@pytest.fixture(scope="module")
def blocks():
    return jaxclip.advise(BLOCKS)


@pytest.fixture(scope="module")
def broken():
    return jaxclip.advise([[3.0, 4.0], [np.nan, 1.0], [0.0, np.inf], [6.0, 8.0]])


def made(code):
    """Evaluates a line as whoever pastes it does, and returns the transformation."""
    return eval(code, {"jaxclip": jaxclip, "optimizer": optax.sgd(0.1)})


def acted(method, rows):
    """The share of the steps in which any clip of a method acted, counted step by step."""
    leaves = list(np.float32(rows).T)
    state, count = method.init([leaf[0] for leaf in leaves]), 0
    update = jax.jit(method.update)
    for row in zip(*leaves, strict=True):
        _, state = update([jnp.asarray(x) for x in row], state)
        count += any(float(clip.clipped) > 0 for clip in jaxclip.metrics(state).values())
    return count / len(rows)


def named(told, name):
    [one] = [one for one in told.suggestions if one.code.startswith(f"jaxclip.{name}(")]
    return one


def test_advice_tells_the_percentiles_and_that_nothing_drifts(steady):
    for q, value in steady.percentiles.items():
        np.testing.assert_allclose(value, np.percentile(STEADY, q))
    assert 0.8 < steady.drift < 1.25
    assert abs(steady.trend) < 0.2
    assert (steady.steps, steady.nonfinite, list(steady.warnings)) == (400, 0, [])


def test_advice_counts_the_steps_that_a_constant_limit_clips(steady):
    first = steady.suggestions[0]
    limit = float(first.code.removeprefix("jaxclip.clip_by_global_norm(").removesuffix(")"))
    np.testing.assert_allclose(limit, np.percentile(STEADY, 90), rtol=0.05)
    np.testing.assert_allclose(first.clipped, np.mean(limit < STEADY), atol=1e-6)


def test_advice_counts_the_steps_beyond_a_running_percentile(steady):
    beyond = [norm > np.percentile(STEADY[: t + 1], 90) for t, norm in enumerate(STEADY)]
    np.testing.assert_allclose(named(steady, "autoclip").clipped, np.mean(beyond), atol=1e-6)


def test_advice_counts_the_steps_beyond_a_tracked_quantile(steady):
    one = named(steady, "clip_by_quantile")
    limit, beyond = float(one.code.split("initial=")[1].rstrip(")")), []
    for norm in STEADY:
        beyond.append(norm > limit)
        limit *= np.exp(-0.2 * ((norm <= limit) - 0.9))
    np.testing.assert_allclose(one.clipped, np.mean(beyond), atol=1e-6)


@pytest.mark.parametrize("name", ["clip_by_history", "adagc"])
def test_advice_counts_what_the_method_itself_clips(blocks, name):
    one = named(blocks, name)
    assert 0 < one.clipped < 1
    np.testing.assert_allclose(one.clipped, acted(made(one.code), BLOCKS), atol=1e-6)


def test_advice_on_blocks_is_of_the_norm_of_them_all(blocks):
    total = np.linalg.norm(BLOCKS, axis=1)
    np.testing.assert_allclose(blocks.percentiles[90], np.percentile(total, 90))
    limit = float(blocks.suggestions[0].code.split("(")[1].rstrip(")"))
    np.testing.assert_allclose(blocks.suggestions[0].clipped, np.mean(total > limit), atol=1e-6)


def test_advice_gives_lines_that_run(steady, blocks):
    for told in (steady, blocks):
        for one in told.suggestions:
            assert isinstance(made(one.code), optax.GradientTransformation)
            assert 0 <= one.clipped <= 1
            assert one.code in str(told)


def test_advice_counts_nans_and_warns_of_them(broken):
    assert (broken.nonfinite, broken.steps) == (2, 4)  # one block that is not finite is enough
    assert (broken.percentiles[1], broken.percentiles[100]) == (5.05, 10)
    told = str(broken)
    assert "2 norms are not finite" in told and "4 norms are few" in told


def test_a_run_that_ends_in_nans_is_told_from_one_with_nans_in_between():
    norms = np.ones(200)
    norms[[20, 30, 199]] = np.nan
    [told] = advice.warnings(norms, 1.0, 1.0)
    assert told.startswith("3 norms are not finite; wrap the optimizer in skip_nonfinite")
    norms[150:] = np.inf
    [told] = advice.warnings(norms, 1.0, 1.0)
    assert "the run diverged at step 150" in told


def test_drift_is_that_of_the_medians():
    falling = np.geomspace(10, 0.1, 400)
    expected = np.median(falling[-80:]) / np.median(falling[:80])
    np.testing.assert_allclose(advice.drift_of(falling), expected)
    assert (advice.drift_of(np.zeros(9)), advice.drift_of(np.arange(9.0))) == (1.0, np.inf)
    [told] = advice.warnings(falling, expected, 1.0)
    assert "norms drift" in told
    assert advice.warnings(falling, 2.0, 1.0) == advice.warnings(falling, 0.5, 1.0) == []


def test_trend_is_in_decades_and_spikes_leave_it_alone():
    falling = np.geomspace(10, 0.1, 401)  # two decades in 400 steps
    np.testing.assert_allclose(advice.trend_of(falling), -5)
    spiky = falling.copy()
    spiky[RNG.choice(401, 60, replace=False)] *= 1e6
    spiky[::50] = np.nan
    np.testing.assert_allclose(advice.trend_of(spiky), -5, rtol=0.1)
    assert advice.trend_of(np.ones(1)) == advice.trend_of(np.zeros(100)) == 0


def test_advice_takes_norms_of_any_kind():
    told = jaxclip.advise(jnp.zeros(3, jnp.bfloat16))
    assert told.suggestions[0].clipped == 0
    assert "nothing is learned" in str(told)
    assert "initial=0)" not in str(told)  # from where a quantile would never rise


@pytest.mark.parametrize(
    ("norms", "error", "message"),
    [
        ([], ValueError, "there are 0 norms and none is finite"),
        ([[]], ValueError, "there are 1 norms and none is finite"),
        ([np.nan, np.inf], ValueError, "there are 2 norms and none is finite"),
        ([1.0, -2.0], ValueError, "the smallest norm is -2"),
        (np.ones((2, 3, 4)), ValueError, r"np\.ravel joins epochs"),
        (["1.0"], TypeError, "as numbers"),
        ([True], TypeError, "norms are bool"),
        ([1j], TypeError, "norms are complex"),
        ([None], TypeError, "norms are object"),
    ],
)
def test_advice_refuses_what_are_no_norms(norms, error, message):
    with pytest.raises(error, match=message):
        jaxclip.advise(norms)
