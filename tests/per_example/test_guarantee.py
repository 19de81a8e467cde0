"""What a clipped sum says of its sensitivity holds, and is refused where nothing is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import clipped_grad, shrinks, value_and_clipped_grad

from .helpers import FAST


def loss(p, x):
    return jnp.sum(jnp.tanh(x @ p["w"]) ** 2) + x[0] * p["b"]


PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.float32(2.0)}
X = jnp.array(np.random.default_rng(0).normal(size=(6, 3)) * 9, jnp.float32)
PRIVATE = {"reduce": "sum", "bound": True}


@pytest.mark.parametrize("make", [clipped_grad, value_and_clipped_grad])
@pytest.mark.parametrize(
    ("limit", "options", "one"),
    [
        (0.5, {}, 0.5),
        (0.5, {"normalize_by": 4.0}, 0.125),
        (0.5, {"rescale_to_unit_norm": True}, 1.0),
        (0.5, {"rescale_to_unit_norm": True, "normalize_by": 4}, 0.25),
        ({"w": 3.0, "b": 4.0}, {}, 5.0),
        ({"w": 3.0, "b": 4.0}, {"rescale_to_unit_norm": True}, 2**0.5),
        (0.5, {"shrink": functools.partial(shrinks.normalize, eps=0.01)}, 0.5),
    ],
)
def test_a_known_sensitivity(make, limit, options, one):
    private = make(loss, limit, **PRIVATE, **options)
    assert private.sensitivity() == pytest.approx(one, rel=1e-12)
    assert private.sensitivity("replace_one") == pytest.approx(2 * one, rel=1e-12)


@pytest.mark.parametrize(
    ("limit", "options", "reason"),
    [
        (None, PRIVATE, "None or infinite"),
        ({"w": 1.0, "b": None}, PRIVATE, "None or infinite"),
        (1.0, {"reduce": "mean", "bound": True}, "normalize_by"),
        (1.0, {"reduce": "sum"}, "bound=True"),
        (1.0, PRIVATE | {"nonfinite": "propagate"}, 'nonfinite="zero"'),
        (1.0, PRIVATE | {"shrink": lambda n, t: t / n}, "not known to keep"),
    ],
)
def test_an_unknown_sensitivity_is_refused(limit, options, reason):
    with pytest.raises(ValueError, match=reason):
        clipped_grad(loss, limit, **options).sensitivity()


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="replace_one"):
        clipped_grad(loss, 1.0, **PRIVATE).sensitivity("replace")


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"normalize_by": 0.0}, ValueError),
        ({"normalize_by": np.nan}, ValueError),
        ({"dtype": jnp.int32}, TypeError),
    ],
)
def test_a_bad_sum_is_refused(option, error):
    with pytest.raises(error, match=next(iter(option))):
        clipped_grad(loss, 1.0, **option)


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_no_example_moves_the_sum_further(strategy):
    options = [{}, {"normalize_by": 3.0}, {"rescale_to_unit_norm": True}]
    sums = [clipped_grad(loss, 0.5, strategy=strategy, **PRIVATE, **each) for each in options]

    def moved(params, x, mask):
        return [(f(params, x)[0], f(params, x, example_mask=mask)[0]) for f in sums]

    mask = jnp.arange(6) != 2
    found = jax.jit(moved, compiler_options=FAST)(PARAMS, X, mask)
    for f, (all_of_them, without) in zip(sums, found, strict=True):
        gap = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), all_of_them, without)
        distance = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gap)))
        assert 0.9 * f.sensitivity() < distance <= f.sensitivity() * (1 + 1e-5)


def test_a_limit_of_zero_or_none_in_units_of_itself():
    def sums(limit, params, x):
        return clipped_grad(loss, limit, reduce="sum", rescale_to_unit_norm=True)(params, x)[0]

    run = jax.jit(sums, compiler_options=FAST)
    for limit, x, norm in (
        (0.0, X[:1], 1.0),
        (np.inf, X[:1], 0.0),
        (1e-30, X[:1], 1.0),
        (0.0, 0 * X[:1], 0.0),
    ):
        squares = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(run(limit, PARAMS, x)))
        assert np.sqrt(squares) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"strategy": "microbatch", "microbatch_size": 1000}])
def test_a_sum_in_a_wider_dtype_than_the_parameters(options):
    def linear(w, x):
        return jnp.sum(w * x)

    w, x = jnp.zeros(2, jnp.bfloat16), jnp.ones((3000, 2), jnp.bfloat16)
    wide = clipped_grad(linear, None, reduce="sum", dtype=jnp.float32, **options)
    gradient, _ = jax.jit(wide, compiler_options=FAST)(w, x)
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, 3000)
