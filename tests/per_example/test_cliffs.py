"""Weights that are rewritten in ordinary ways cost about what a plain weight does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxclip import per_example

from .helpers import FAST


def entropy(logits):
    return -jnp.sum(jax.nn.log_softmax(logits)[:, 0])


def product(weight):
    """A loss `(params, x)` with a matrix made of the parameters."""

    def loss(p, x):
        return entropy(x @ weight(p))

    return loss


def straight_through(p):
    return p["w"] + lax.stop_gradient(jnp.round(p["w"]) - p["w"])


def constrained(p):
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    return lax.with_sharding_constraint(p["w"], NamedSharding(mesh, PartitionSpec(None, "a")))


def weight_norm(p):
    return p["g"][None] * p["w"] / jnp.linalg.norm(p["w"], axis=0)[None]


def standardized(p):
    return (p["w"] - p["w"].mean(0)[None]) / jnp.sqrt(p["w"].var(0)[None] + 1e-5)


def split(p, x):
    return sum(entropy(x @ w) for w in jnp.split(p["w"], 4, 1))


def heads(p, x):
    """A fused projection that is reshaped before it is taken apart."""
    width = p["w"].shape[0]
    fused = p["w"].reshape(width, 2, width // 2)
    return sum(entropy(x @ fused[:, i]) for i in range(2))


def stacked(p, x):
    return entropy(jnp.tanh(x @ p["layers"][0]) @ p["layers"][1])


def counted(p, x):
    return entropy(lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ p["layers"][i]) * (1 + i), x))


def indexed(p, x):
    def layer(h, i):
        return jnp.tanh(h @ p["layers"][1 - i]), None

    return entropy(lax.scan(layer, x, jnp.arange(2))[0])


def penalized(p, x):
    plain = product(lambda p: p["w"])(p, x)
    return plain + 1e-4 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))


SQUARES = {"w": "dd"}
LAYERS = {"layers": "2dd"}
# The loss, the shapes of its parameters, the memory of an ordinary gradient that it may take, and
# the forms.
ROWS = {
    "plain": (product(lambda p: p["w"]), SQUARES, 2.1, {"Gram"}),
    "divided": (product(lambda p: p["w"] / jnp.sqrt(3.0)), SQUARES, 3, {"Gram"}),
    "times a number": (product(lambda p: -2.0 * p["w"].T), SQUARES, 3, {"Gram"}),
    "masked": (
        product(lambda p: p["w"] * jnp.tri(len(p["w"]), dtype=p["w"].dtype)),
        SQUARES,
        3,
        {"matrices"},
    ),
    "straight through": (product(straight_through), SQUARES, 3, {"Gram"}),
    "named": (product(lambda p: checkpoint_name(p["w"], "w")), SQUARES, 3, {"Gram"}),
    "barrier": (product(lambda p: lax.optimization_barrier(p["w"])), SQUARES, 3, {"Gram"}),
    "constrained": (product(constrained), SQUARES, 3, {"Gram"}),
    "merged": (
        product(lambda p: p["w"] + p["a"] @ p["b"]),
        SQUARES | {"a": "d4", "b": "4d"},
        4,
        {"matrices"},
    ),
    "weight norm": (product(weight_norm), SQUARES | {"g": "d"}, 6, {"matrices"}),
    "standardized": (product(standardized), SQUARES, 6, {"matrices"}),
    "concatenated": (
        product(lambda p: jnp.concatenate([p["q"], p["k"], p["v"]], 1)),
        {"q": "dd", "k": "dd", "v": "dd"},
        3,
        {"Gram"},
    ),
    "split": (split, SQUARES, 3, {"Gram"}),
    "heads": (heads, SQUARES, 3, {"Gram"}),
    "stacked": (stacked, LAYERS, 3, {"Gram"}),
    "counted": (counted, LAYERS, 3, {"Gram"}),
    "indexed": (indexed, LAYERS, 3, {"Gram"}),
    "penalized": (penalized, SQUARES, 3, {"matrices"}),
}


def shapes(kinds, width):
    return {
        name: jax.ShapeDtypeStruct(tuple(width if c == "d" else int(c) for c in kind), jnp.float32)
        for name, kind in kinds.items()
    }


def memory(function, *arguments):
    """What a function takes while it runs, its results included."""
    stats = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return stats.temp_size_in_bytes + stats.output_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_memory_over_that_of_an_ordinary_gradient(name, monkeypatch):
    # A batch may be spread over all devices, each of which then has an example at least in hand.
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    loss, kinds, most, forms = ROWS[name]
    params, x = shapes(kinds, 512), jax.ShapeDtypeStruct((64, 4, 512), jnp.float32)
    ordinary = jax.grad(lambda p, x: jnp.mean(jax.vmap(loss, (None, 0))(p, x)))
    ours = memory(per_example.clipped_grad(loss, 1.0), params, x)
    assert ours <= most * memory(ordinary, params, x)
    table = per_example.explain(loss, params, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    assert {row.form for row in table.rows} == forms
    assert table.fallbacks == ()


@pytest.mark.wide
@pytest.mark.parametrize("name", ROWS)
def test_it_is_the_definition(name):
    loss, kinds, _, _ = ROWS[name]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {k: jnp.array(rng.normal(size=s.shape)) for k, s in shapes(kinds, 8).items()}
        x = jnp.array(rng.normal(size=(6, 2, 8)))

        def everything(params, x):
            ways = [
                per_example.clipped_grad(loss, limit) for limit in (3.0, dict.fromkeys(params, 2.0))
            ]
            return jax.vmap(jax.grad(loss), (None, 0))(params, x), [f(params, x) for f in ways]

        grads, (whole, apart) = jax.jit(everything, compiler_options=FAST)(params, x)
        squares = {k: np.sum(np.square(g).reshape(6, -1), 1) for k, g in grads.items()}
        norms = np.sqrt(sum(squares.values()))
        np.testing.assert_allclose(whole[1].norms, norms, rtol=1e-11)
        for k, g in grads.items():
            own = np.sqrt(squares[k])
            np.testing.assert_allclose(apart[1].norms[k], own, rtol=1e-11)
            for (found, _), factor in ((whole, 3 / norms), (apart, 2 / own)):
                mean = np.tensordot(np.minimum(1, factor), g, 1) / 6
                np.testing.assert_allclose(found[k], mean, rtol=0, atol=1e-11 * np.abs(mean).max())


def test_slices_that_overlap_are_not_added():
    def loss(w, x):
        return jnp.sum(jnp.sin(x[:, :6] @ w[:6])) + jnp.sum(jnp.sin(x[:, 2:] @ w[2:]) ** 2)

    def repeated(w, x):
        return jnp.sum(lax.fori_loop(0, 4, lambda i, h: jnp.tanh(h @ w[i // 2]), x))

    rng = np.random.default_rng(1)
    x = jnp.array(rng.normal(size=(5, 2, 8)), jnp.float32)
    for f, shape in ((loss, (8, 8)), (repeated, (2, 8, 8))):
        w = jnp.array(rng.normal(size=shape), jnp.float32)
        ours = jax.jit(per_example.norms(f), compiler_options=FAST)(w, x)
        grads = jax.jit(jax.vmap(jax.grad(f), (None, 0)), compiler_options=FAST)(w, x)
        np.testing.assert_allclose(ours, np.linalg.norm(grads.reshape(5, -1), axis=1), rtol=1e-5)


def test_a_scale_of_zero_or_nan():
    def loss(w, x, scale):
        return jnp.sum(jnp.sin(x @ (w * scale)))

    w, x = jnp.ones((8, 8)), jnp.ones((3, 2, 8))
    for scale, norm in ((0.0, 0.0), (np.nan, np.nan)):
        norms = per_example.norms(lambda w, x, s=scale: loss(w, x, s))
        found = jax.jit(norms, compiler_options=FAST)(w, x)
        np.testing.assert_array_equal(found, np.full(3, norm))
