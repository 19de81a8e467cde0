"""Every method and wrapper lowers for CPU, CUDA and TPU; no test needs one of these devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.helpers import METHODS, WRAPPERS, tree
from tests.hlo import check_lowers_everywhere

EVERY = {case.name: case.make for case in METHODS} | WRAPPERS


DAILY = ("clip_by_global_norm", "clip_by_value", "clip_singular_values", "skip_nonfinite")
NAMES = [name if name in DAILY else pytest.param(name, marks=pytest.mark.wide) for name in EVERY]


@pytest.mark.parametrize("name", NAMES)
def test_platforms_init_and_update_lower(name):
    tx = EVERY[name]()
    params, gradient = tree(jnp.float32, jnp.bfloat16, seed=1), tree(jnp.float32, jnp.bfloat16)

    def two_steps(gradient, params):
        _, state = tx.update(gradient, tx.init(params), params)
        return tx.update(gradient, state, params)

    called = check_lowers_everywhere(two_steps, gradient, params)
    decomposes = name == "clip_singular_values"
    assert all(bool(routines) == decomposes for routines in called.values())


@pytest.mark.parametrize("name", NAMES)
def test_platforms_nothing_larger_than_a_number_is_float64_where_it_is_enabled(name):
    """TPUs emulate float64, if at all; only the constants of Python are of it."""
    with jax.enable_x64(True):
        tx, params = EVERY[name](), tree(seed=1)
        state = jax.eval_shape(tx.init, params)
        text = jax.jit(tx.update).lower(params, state, params).as_text()
    assert not re.search(r"xf64>", text)


def test_platforms_norms_lower():
    check_lowers_everywhere(jax.value_and_grad(jaxclip.global_norm), tree())
    check_lowers_everywhere(jax.vmap(jaxclip.global_norm), jnp.ones((3, 2)))


def _calls_back(x):
    return jax.pure_callback(np.sin, x, x)


@pytest.mark.parametrize("bad", [_calls_back, jnp.linalg.eigvals], ids=["callback", "routine"])
def test_platforms_the_check_sees_what_a_platform_lacks(bad):
    with pytest.raises((AssertionError, NotImplementedError, ValueError)):
        check_lowers_everywhere(bad, jnp.ones((2, 2)))


def test_platforms_the_check_sees_float64():
    with jax.enable_x64(True), pytest.raises(AssertionError):
        check_lowers_everywhere(jnp.sin, jnp.ones(2, jnp.float64))
