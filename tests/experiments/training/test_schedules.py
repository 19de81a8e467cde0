import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import schedules

SHAPES = [schedules.linear, schedules.cosine, schedules.step]


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
