"""The stand-in gives what jax-privacy gives, by the options and edges that it documents."""

import doctest
import itertools

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_privacy import clipping

from jaxclip.contrib import jax_privacy

from ..per_example.helpers import FAST

# What jax-privacy itself is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated")

RNG = np.random.default_rng(0)
X = jnp.array(RNG.normal(size=(6, 3)) * 5, jnp.float32)
Y = jnp.array(RNG.normal(size=6), jnp.float32)
PARAMS = {"w": jnp.array(RNG.normal(size=(3, 2)), jnp.float32), "b": jnp.float32(0.5)}


def loss(params, x, y):
    """Of a batch, or of one example."""
    out = jnp.tanh(x @ params["w"]).sum(-1) + params["b"]
    return jnp.mean((out - y) ** 2)


def with_aux(params, x, y):
    return loss(params, x, y), {"out": x @ params["w"], "scalar": params["b"]}


def both(f, *args, **options):
    ours, theirs = (make.clipped_grad(f, **options) for make in (jax_privacy, clipping))
    assert isinstance(ours, clipping.BoundedSensitivityCallable)
    assert ours.has_aux == theirs.has_aux
    for relation in dp_accounting.NeighboringRelation:
        try:
            wanted = theirs.sensitivity(relation)
        except ValueError:
            with pytest.raises(ValueError, match="nsupported"):
                ours.sensitivity(relation)
        else:
            assert ours.sensitivity(relation) == wanted
    run = jax.jit(lambda *args: (ours(*args), theirs(*args)), compiler_options=FAST)
    with jax.numpy_dtype_promotion("standard"):  # jax-privacy is not written for "strict"
        return run(*args)


def same(found, wanted, rtol=2e-5):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.nanmax(np.abs(b), initial=0))


OPTIONS = {
    "plain": {},
    "rescaled": {"rescale_to_unit_norm": True},
    "normalized": {"normalize_by": 4.0},
    "no limit": {"l2_clip_norm": np.inf},
    "zero": {"l2_clip_norm": 0.0},
    "no limit, rescaled": {"l2_clip_norm": np.inf, "rescale_to_unit_norm": True},
    "zero, rescaled": {"l2_clip_norm": 0.0, "rescale_to_unit_norm": True},
    "one example": {"keep_batch_dim": False},
    "values": {"return_values": True},
    "norms": {"return_grad_norms": True, "keep_batch_dim": False},
    "microbatches": {"microbatch_size": 2, "return_grad_norms": True, "return_values": True},
    "not safe": {"nan_safe": False},
    "transformed": {"pre_clipping_transform": lambda g: g["w"] * 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    options = {"l2_clip_norm": 0.7, "batch_argnums": (1, 2)} | OPTIONS[name]
    same(*both(loss, PARAMS, X, Y, **options))


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "values"), list(itertools.product([True, False], repeat=2)))
def test_auxiliary_outputs(keep, values):
    options = {"has_aux": True, "keep_batch_dim": keep, "return_values": values}
    same(*both(with_aux, PARAMS, X, Y, l2_clip_norm=0.7, batch_argnums=(1, 2), **options))


@pytest.mark.slow
def test_several_trained_arguments_in_any_order():
    def f(x, w, y, b):
        return loss({"w": w, "b": b}, x, y)

    args = (X, PARAMS["w"], Y, PARAMS["b"])
    same(*both(f, *args, argnums=(3, 1), batch_argnums=(2, 0), l2_clip_norm=0.7))


@pytest.mark.slow
def test_keys_are_split_as_there():
    def f(params, x, key):
        return loss(params, jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0), 0.0)

    for key in (jax.random.key(1), jax.random.PRNGKey(1)):
        same(*both(f, PARAMS, X, key, l2_clip_norm=0.7, prng_argnum=2))


@pytest.mark.slow
def test_a_wider_dtype():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    x, y = X.astype(jnp.bfloat16), Y.astype(jnp.bfloat16)
    options = {"batch_argnums": (1, 2), "l2_clip_norm": 0.7, "dtype": jnp.float32}
    same(*both(loss, params, x, y, **options), rtol=3e-2)


@pytest.mark.slow
def test_padding_and_nan():
    padding = jnp.arange(6) >= 4
    options = {"batch_argnums": (1, 2), "l2_clip_norm": 0.7}
    made = [make.clipped_grad(loss, **options) for make in (jax_privacy, clipping)]
    same(*(f(PARAMS, X, Y, is_padding_example=padding) for f in made))
    same(*(f(PARAMS, X, Y.at[2].set(jnp.nan)) for f in made))
    unsafe = [
        make.clipped_grad(loss, nan_safe=False, **options) for make in (jax_privacy, clipping)
    ]
    found = [f(PARAMS, X, Y.at[2].set(jnp.nan)) for f in unsafe]
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "options",
    [
        {"normalize_by": 0.0},
        {"batch_argnums": ()},
        {"batch_argnums": (0,)},
        {"argnums": -1},
        {"batch_argnums": -1},
    ],
)
def test_what_is_refused_there_is_refused(options):
    for make in (jax_privacy, clipping):
        with pytest.raises(ValueError, match=r"\w"):
            make.clipped_grad(loss, l2_clip_norm=1.0, **options)


def test_bad_batches_are_refused():
    for make in (jax_privacy, clipping):
        f = make.clipped_grad(loss, l2_clip_norm=1.0, batch_argnums=(1, 2), keep_batch_dim=False)
        for args in ((PARAMS, X), (PARAMS, X, Y[:3])):
            with pytest.raises(ValueError, match=r"argnum|atch"):
                f(*args)


def test_the_example_of_the_docstring():
    results = doctest.testmod(jax_privacy)
    assert results.attempted
    assert not results.failed
