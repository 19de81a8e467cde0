import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import schedules

SHAPES = range(len(schedules.SHAPES))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_schedule_is_exact_at_both_ends_and_stays_at_the_last(shape):
    first, last = jnp.float32(0.3), jnp.float32(0.1)
    value = schedules.schedule(shape, first, last, jnp.float32(7))
    assert value(jnp.int32(0)) == first
    assert value(jnp.int32(7)) == last
    assert value(jnp.int32(1000)) == last


@pytest.mark.parametrize("shape", SHAPES)
def test_a_schedule_never_turns_back(shape):
    value = schedules.schedule(shape, jnp.float32(2.0), jnp.float32(0.5), jnp.float32(50))
    assert np.all(np.diff(value(jnp.arange(60))) <= 0)


def test_the_shapes_are_what_their_names_say():
    times = jnp.array([0.0, 0.25, 0.5, 0.999, 1.0])
    np.testing.assert_allclose(schedules.linear(times), times)
    np.testing.assert_allclose(
        schedules.cosine(times), np.sin(np.pi * np.array(times) / 2) ** 2, atol=1e-6
    )
    np.testing.assert_array_equal(schedules.step(times), [0, 0, 0, 0, 1])


@pytest.mark.parametrize("shape", SHAPES)
def test_an_infinite_limit_stays_infinite_and_comes_down_at_its_end(shape):
    still = schedules.schedule(shape, jnp.float32(jnp.inf), jnp.float32(jnp.inf), jnp.float32(7))
    assert np.all(np.isinf(still(jnp.arange(10))))
    down = schedules.schedule(shape, jnp.float32(jnp.inf), jnp.float32(1.0), jnp.float32(7))
    assert down(jnp.int32(6)) == np.inf
    assert down(jnp.int32(7)) == 1


def test_a_constant_is_exact_in_between():
    third = jnp.float32(1 / 3)
    assert np.all(schedules.schedule(1, third, third, jnp.float32(9))(jnp.arange(12)) == third)


def test_the_shapes_may_differ_within_one_program():
    @jax.jit
    @jax.vmap
    def half_way(shape):
        return schedules.schedule(shape, jnp.float32(1), jnp.float32(0), jnp.float32(10))(3)

    np.testing.assert_allclose(half_way(jnp.arange(3)), [0.7, 0.5 + np.cos(0.3 * np.pi) / 2, 1.0])


def test_a_rate_warms_up_and_falls():
    numbers = jnp.float32(2.0), jnp.float32(0.1), jnp.float32(0.2)
    rate = schedules.rate_schedule(0, *numbers, 50)
    expected = np.interp(np.arange(51), [0, 9, 10, 50], [0.2, 2.0, 2.0, 0.2])
    np.testing.assert_allclose(rate(jnp.arange(51)), expected, rtol=1e-6)


def test_a_rate_without_warm_up_begins_at_its_peak():
    rate = schedules.rate_schedule(1, jnp.float32(2.0), jnp.float32(1.0), jnp.float32(0.0), 50)
    assert np.all(rate(jnp.arange(50)) == 2)
