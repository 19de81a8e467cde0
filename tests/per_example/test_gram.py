"""Norms of products whose positions cancel, or lie at the ends of what a float can hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import per_example

from .helpers import FAST

RNG = np.random.default_rng(0)
A, N, A_OTHER = RNG.normal(size=(3, 24))
V, V_OTHER = RNG.normal(size=(2, 16))
FIRST = np.eye(24)[0]


def loss(w, x, v):
    return jnp.sum((x @ w) * v)


def convolved(w, x, v):
    numbers = ("NHC", "HIO", "NHC")
    y = jax.lax.conv_general_dilated(x[None], w[None], (1,), "VALID", dimension_numbers=numbers)[0]
    return jnp.sum(y * v)


def tied(w, x, v, ids):
    looked_up = jnp.sum(w[ids] * v) + jnp.sum(w[ids[::-1]] * v)
    return looked_up + jnp.sum((x[:1] @ w) * v[:1]) + jnp.sum((v[1:] @ w.T) * x[1:])


CASES = {
    "two that nearly cancel": ([A, A + 2e-4 * N], [1e4 * V, -1e4 * V]),
    "two that cancel": ([A, A], [V, -V]),
    "one float apart": ([A, A * (1 + 2e-7)], [V, -V]),
    "many that cancel": ([A] * 16 + [A + 1e-3 * N], [V, -V] * 8 + [1e-3 * V]),
    "three that nearly cancel": ([A, N, A + N], [V, V, -V * (1 + 1e-5)]),
    "nothing": ([0 * A, A], [V, 0 * V]),
    "no gradient": ([A, N], [0 * V, 0 * V]),
    "plain": ([A, N, A_OTHER], [V, V_OTHER, V]),
    "large times small": ([1e20 * A, 1e-20 * A], [1e-20 * V, 1e20 * V]),
    "one large times small": ([1e20 * A], [1e-20 * V]),
    "one small times large": ([1e-20 * A], [1e18 * V]),
    "a large position and a small one": ([1e30 * A, 1e-30 * N], [1e-36 * V, 1e36 * V]),
    "large, and cancelling": ([1e30 * A, 1e30 * A * (1 + 1e-3)], [1e4 * V, -1e4 * V]),
    "large": ([1e30 * A, 1e30 * N], [1e6 * V, 1e6 * V_OTHER]),
    "small": ([1e-30 * A, 1e-30 * N], [1e-7 * V, 1e-7 * V_OTHER]),
    "small in the shadow of large": ([FIRST, FIRST + 1e-25 * np.eye(24)[1]], [1e30 * V, -1e30 * V]),
}


def problem(name):
    a, v = (np.array(side, np.float32) for side in CASES[name])
    products = np.einsum("td,te->de", a.astype(np.float64), v.astype(np.float64))
    lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(v.astype(float), axis=1)
    return a, v, np.sqrt(np.sum(products**2)), lengths.sum()


@pytest.mark.parametrize("of", [loss, convolved], ids=["product", "convolution"])
def test_norms_where_the_gram_form_is_hard(of):
    # All in one batch: an example's norm is not changed by those of its neighbors.
    longest = max(len(a) for a, _ in CASES.values())
    problems = [problem(name) for name in CASES]
    x, v = (
        jnp.array([np.pad(p[i], ((0, longest - len(p[i])), (0, 0))) for p in problems])
        for i in range(2)
    )
    w = jnp.zeros((24, 16))
    run = jax.jit(
        lambda *b: [per_example.norms(of, form="gram", bound=bound)(*b) for bound in (False, True)],
        compiler_options=FAST,
    )
    found, bounds = run(w, x, v)
    for name, (_, _, true, lengths), norm, bound in zip(
        CASES, problems, found, bounds, strict=True
    ):
        # The sum itself is rounded: to within a few of the last places of its terms.
        assert abs(np.float64(norm) - true) <= 1e-5 * true + 3e-7 * lengths, name
        assert np.float64(bound) >= true, name
        assert np.float64(bound) <= true * (1 + 1e-2) + 1e-5 * lengths, name
    own = list(CASES).index("plain")
    alone, _ = run(w, jnp.tile(x[own], (len(x), 1, 1)), jnp.tile(v[own], (len(x), 1, 1)))
    assert alone[0] == found[own]


def test_an_example_that_cancels_is_clipped():
    x, v, _, _ = problem("two that nearly cancel")
    w = jnp.zeros((24, 16))
    for bound in (False, True):
        clip = per_example.clipped_grad(loss, 1.0, form="gram", reduce="sum", bound=bound)
        gradient, info = clip(w, jnp.array(x)[None], jnp.array(v)[None])
        assert info.clipped.all()
        assert np.linalg.norm(np.float64(gradient)) <= (1 if bound else 1 + 1e-3)


@pytest.mark.parametrize("bound", [False, True])
def test_a_tied_weight_that_cancels(bound):
    x, v, _, lengths = problem("two that nearly cancel")
    w, ids = jnp.zeros((24, 16)), jnp.array([3, 3])
    exact = np.einsum("td,te->de", np.float64(x), np.float64(v))
    exact[3] += 2 * np.float64(v).sum(0)
    norms = per_example.norms(tied, form="gram", bound=bound)
    assert per_example.explain(tied, w, x, v, ids, form="gram").rows[0].form == "Gram"
    (found,) = norms(w, jnp.array(x)[None], jnp.array(v)[None], ids[None])
    true, most = np.linalg.norm(exact), lengths + 2 * np.linalg.norm(v, axis=1).sum()
    assert abs(found - true) <= 3e-7 * most + (1e-5 * most if bound else 0)
    assert found >= true or not bound


@pytest.mark.parametrize("seed", range(3))
def test_a_bound_is_never_below(seed):
    rng = np.random.default_rng(seed)
    batch, positions = 64, 9
    scale = 10.0 ** rng.integers(-4, 5, (batch, positions, 1))
    a = rng.normal(size=(batch, positions, 24)) * scale
    v = rng.normal(size=(batch, positions, 16)) * 10.0 ** rng.integers(-4, 5, (batch, positions, 1))
    a[:, 1::2] = a[:, :-1:2] * (1 + 1e-6 * rng.normal(size=(batch, positions // 2, 24)))
    v[:, 1::2] = -v[:, :-1:2]
    a, v = np.float32(a), np.float32(v)
    true = np.linalg.norm(np.einsum("btd,bte->bde", np.float64(a), np.float64(v)), axis=(1, 2))
    w = jnp.zeros((24, 16))
    for options in ({"form": "gram"}, {"form": "matrices"}, {}):
        norms = per_example.norms(loss, bound=True, **options)
        found = jax.jit(norms, compiler_options=FAST)(w, a, v)
        assert (np.float64(found) >= true).all()
    for strategy in ("auto", "vmap"):
        clip = per_example.clipped_grad(loss, 1.0, bound=True, reduce="sum", strategy=strategy)
        one = jax.jit(clip, compiler_options=FAST)
        sums = np.float64([one(w, x[None], y[None])[0] for x, y in zip(a[:8], v[:8], strict=True)])
        assert (np.linalg.norm(sums, axis=(1, 2)) <= 1 + 1e-6).all()


def test_a_bound_of_every_form_of_a_model():
    def model(p, x):
        h = jnp.tanh(x @ p["in"] + p["bias"][None])
        h = h + h @ p["mid"] + p["table"][jnp.argmax(x, 1) % 5]
        return jnp.sum(jnp.sin(h @ p["mid"].T) ** 2)

    shapes = {"in": (6, 8), "bias": (8,), "mid": (8, 8), "table": (5, 8)}
    params = {k: jnp.array(RNG.normal(size=s), jnp.float32) for k, s in shapes.items()}
    x = jnp.array(RNG.normal(size=(4, 3, 6)), jnp.float32)
    for form in ("gram", "matrices"):
        run = jax.jit(
            lambda p, x, form=form: [
                per_example.norms(model, form=form, bound=bound)(p, x) for bound in (False, True)
            ],
            compiler_options=FAST,
        )
        norms, bounds = run(params, x)
        assert (bounds > norms).all()
        assert (bounds < norms * (1 + 1e-3)).all()
