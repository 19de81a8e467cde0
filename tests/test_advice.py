import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip

RNG = np.random.default_rng(0)
STEADY = RNG.lognormal(0, 0.3, 400)


@pytest.fixture(scope="module")
def steady():
    return jaxclip.advise(STEADY)


def test_advice_tells_the_percentiles_and_that_nothing_drifts(steady):
    for q, value in steady.percentiles.items():
        np.testing.assert_allclose(value, np.percentile(STEADY, q))
    assert 0.8 < steady.drift < 1.25
    assert (steady.steps, steady.nonfinite, list(steady.warnings)) == (400, 0, [])


def test_advice_counts_the_steps_that_a_constant_limit_clips(steady):
    first = steady.suggestions[0]
    limit = float(first.code.removeprefix("clip_by_global_norm(").removesuffix(")"))
    np.testing.assert_allclose(limit, np.percentile(STEADY, 90), rtol=0.05)
    np.testing.assert_allclose(first.clipped, np.mean(limit < STEADY), atol=1e-6)


def test_advice_counts_what_the_method_itself_clips(steady):
    [one] = [one for one in steady.suggestions if one.code == "clip_by_history()"]
    method = jaxclip.clip_by_history()
    state, clipped = method.init(jnp.zeros(2)), []
    update = jax.jit(method.update)
    for norm in STEADY.astype(np.float32):
        _, state = update(norm * jnp.array([0.6, 0.8]), state)
        clipped.append(float(jaxclip.metrics(state)["clip"].clipped))
    np.testing.assert_allclose(one.clipped, np.mean(clipped), atol=1e-6)


def test_advice_gives_lines_that_run(steady):
    for one in steady.suggestions:
        method = eval(f"jaxclip.{one.code}", {"jaxclip": jaxclip})
        assert isinstance(method, optax.GradientTransformation)
        assert 0 <= one.clipped <= 1
        assert one.code in str(steady)


def test_advice_warns_of_drift_of_nans_and_of_few_norms():
    falling = np.geomspace(10, 0.1, 400)
    advice = jaxclip.advise(falling)
    np.testing.assert_allclose(advice.drift, np.median(falling[-80:]) / np.median(falling[:80]))
    assert ["drift" in warning for warning in advice.warnings] == [True]
    broken = jaxclip.advise([*falling[:9], np.nan, np.inf])
    assert (broken.nonfinite, broken.percentiles[100]) == (2, 10)
    assert [word in str(broken) for word in ("2 norms are not finite", "11 norms are few")] == [
        True,
        True,
    ]


def test_advice_takes_norms_of_any_kind():
    assert jaxclip.advise(jnp.ones(3, jnp.bfloat16)).percentiles[50] == 1
    assert jaxclip.advise([0, 0, 0]).suggestions[0].clipped == 0


@pytest.mark.parametrize(
    ("norms", "error", "message"),
    [
        ([], ValueError, "there are 0 norms and none is finite"),
        ([np.nan, np.inf], ValueError, "there are 2 norms and none is finite"),
        ([1.0, -2.0], ValueError, "the smallest norm is -2"),
        (["1.0"], TypeError, "as numbers"),
        ([True], TypeError, "norms are bool"),
    ],
)
def test_advice_refuses_what_are_no_norms(norms, error, message):
    with pytest.raises(error, match=message):
        jaxclip.advise(norms)
