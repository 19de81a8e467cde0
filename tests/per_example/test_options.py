"""What the arguments of `clipped_grad` and `value_and_clipped_grad` do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import per_example, shrinks

from .helpers import FAST, cast, clip, close, distance
from .zoo import ZOO

MLP = ZOO["mlp"]()
PARAMS, BATCH = cast(MLP.params, "float32"), cast(MLP.batch, "float32")
SHRINKS = {
    "hard": shrinks.hard,
    "auto-s": functools.partial(shrinks.normalize, eps=0.01),
    "psac": shrinks.psac,
    "smooth": shrinks.smooth,
    "drop": shrinks.drop,
}


def reference(limit, params, *batch, shrink=shrinks.hard, mask=None):
    """The definition: gradients one by one, clipped one by one, in float64 NumPy."""
    total, norms = jax.tree.map(np.zeros_like, params), []
    for i in range(len(batch[0])):
        grad = jax.tree.map(np.float64, jax.grad(MLP.loss)(params, *(x[i] for x in batch)))
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grad)))
        factor = float(shrink(jnp.float32(norm), jnp.float32(limit)))
        factor *= 1 if mask is None or mask[i] else 0
        total = jax.tree.map(lambda t, g, f=factor: t + f * g, total, grad)
        norms.append(norm)
    return total, np.array(norms)


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
@pytest.mark.parametrize("name", SHRINKS)
def test_every_shrink_is_an_argument(name, strategy):
    _, norms = reference(1.0, PARAMS, *BATCH)
    limit = np.float32(np.median(norms))
    options = {"shrink": SHRINKS[name], "reduce": "sum", "strategy": strategy}
    gradient, info = clip(MLP, **options)(limit, PARAMS, *BATCH)
    wanted, _ = reference(limit, PARAMS, *BATCH, shrink=SHRINKS[name])
    assert distance(gradient, wanted) < 1e-5
    assert distance(info.norms, norms) < 1e-5


def test_mean_is_the_sum_over_the_number_of_examples():
    mean, _ = clip(MLP, "auto")(np.float32(0.5), PARAMS, *BATCH)
    total, _ = clip(MLP, "auto", reduce="sum")(np.float32(0.5), PARAMS, *BATCH)
    assert distance(jax.tree.map(lambda g: 6 * g, mean), total) < 1e-6


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_limits_by_leaf_and_by_group(strategy):
    limits = {"w1": 0.1, "b1": None, "w2": jnp.float32(0.2), "b2": 0.0}
    gradient, info = jax.jit(
        per_example.clipped_grad(MLP.loss, limits, strategy=strategy, reduce="sum"),
        compiler_options=FAST,
    )(PARAMS, *BATCH)
    grads = jax.vmap(jax.grad(MLP.loss), (None, 0, 0))(PARAMS, *BATCH)
    for key, limit in limits.items():
        grad = np.asarray(grads[key], np.float64).reshape(6, -1)
        norms = np.sqrt((grad**2).sum(1))
        tau = np.inf if limit is None else float(limit)
        wanted = (np.minimum(1, tau / norms)[:, None] * grad).sum(0).reshape(PARAMS[key].shape)
        assert distance(gradient[key], wanted) < 1e-5
        assert distance(info.norms[key], norms) < 1e-5
        assert np.array_equal(info.clipped[key], norms > tau)


def test_a_limit_stands_for_all_below_it():
    params = {
        "first": {k: PARAMS[k] for k in ("w1", "b1")},
        "second": {k: PARAMS[k] for k in ("w2", "b2")},
    }

    def loss(params, x, y):
        return MLP.loss({**params["first"], **params["second"]}, x, y)

    limits = {"first": 0.3, "second": 0.2}
    norms = per_example.norms(loss, blocks=limits)(params, *BATCH)
    leaf = per_example.norms(loss, blocks="leaf")(params, *BATCH)
    for group, inner in leaf.items():
        pooled = np.sqrt(sum(np.square(n) for n in inner.values()))
        assert distance(norms[group], pooled) < 1e-6
    gradient, info = per_example.clipped_grad(loss, limits)(params, *BATCH)
    assert distance(info.norms, norms) < 1e-6
    wanted, _ = per_example.clipped_grad(loss, limits, strategy="vmap")(params, *BATCH)
    assert distance(gradient, wanted) < 1e-5


def test_none_in_the_parameters_is_no_block():
    params = {"w": jnp.ones(2), "static": None, "part": {"v": jnp.ones(2), "rest": None}}

    def loss(params, x):
        return jnp.sum(params["w"] * x) + jnp.sum(params["part"]["v"] * x)

    x = jnp.ones((3, 2))
    for blocks in ("leaf", jax.tree.map(lambda _: "a block", params)):
        found = per_example.norms(loss, blocks=blocks)(params, x)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert found["static"] is None
    for strategy in ("auto", "vmap"):
        limits = {"w": 1.0, "static": None, "part": None}
        clip = per_example.clipped_grad(loss, limits, strategy=strategy)
        info = clip(params, x)[1]
        assert jax.tree.map(jnp.shape, info.norms) == {"w": (3,), "static": None, "part": (3,)}
        assert jax.tree.structure(info.clipped) == jax.tree.structure(info.norms)


def test_norms_are_those_of_clipped_grad():
    _, info = clip(MLP, "auto")(np.float32(1), PARAMS, *BATCH)
    norms = jax.jit(per_example.norms(MLP.loss), compiler_options=FAST)(PARAMS, *BATCH)
    assert distance(norms, info.norms) < 1e-6


@pytest.mark.parametrize("strategy", ["auto", "vmap", "microbatch"])
def test_masked_examples_do_not_count(strategy):
    size = {"microbatch_size": 4} if strategy == "microbatch" else {}
    mask = jnp.array([True, False, True, True, False, True])
    poisoned = BATCH[0].at[1].set(jnp.nan), BATCH[1]  # padding may hold anything
    gradient, info = jax.jit(
        per_example.clipped_grad(MLP.loss, 0.5, strategy=strategy, **size), compiler_options=FAST
    )(PARAMS, *poisoned, example_mask=mask)
    wanted, norms = reference(0.5, PARAMS, *BATCH, mask=mask)
    assert distance(gradient, jax.tree.map(lambda g: g / 4, wanted)) < 1e-5
    assert distance(info.norms, np.where(mask, norms, 0)) < 1e-5
    assert info.nonfinite == 0
    assert not info.clipped[1]


def test_a_batch_of_padding_alone_is_zero():
    gradient, _ = per_example.clipped_grad(MLP.loss, 0.5)(
        PARAMS, *BATCH, example_mask=jnp.zeros(6, bool)
    )
    assert not any(jnp.any(g) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_example_is_isolated_and_counted(strategy, bad):
    x = BATCH[0].at[2, 1].set(bad)
    keep = np.arange(6) != 2
    gradient, info = clip(MLP, strategy, reduce="sum")(np.float32(0.5), PARAMS, x, BATCH[1])
    wanted, _ = clip(MLP, strategy, reduce="sum")(np.float32(0.5), PARAMS, x[keep], BATCH[1][keep])
    assert distance(gradient, wanted) < 1e-6
    assert info.nonfinite == 1
    assert not np.isfinite(info.norms[2])
    gradient, info = clip(MLP, strategy, nonfinite="propagate")(
        np.float32(0.5), PARAMS, x, BATCH[1]
    )
    assert info.nonfinite == 1
    assert all(np.isnan(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer tied", "l2 inside"])
def test_a_bad_example_is_isolated_in_every_form(name):
    model = ZOO[name]()
    params, batch = cast(model.params, "float32"), cast(model.batch, "float32")
    weights = jnp.ones(6).at[3].set(jnp.nan)
    weighted = model._replace(loss=lambda p, w, *example: w * model.loss(p, *example))
    run = clip(weighted, "auto", form="gram")
    gradient, info = run(np.float32(1), params, weights, *batch)
    wanted, _ = clip(weighted, "vmap")(np.float32(1), params, weights, *batch)
    assert distance(gradient, wanted) < 1e-5
    assert info.nonfinite == 1


@pytest.mark.parametrize(
    ("size", "form"), [(1e25, "gram"), (1e-25, "gram"), (1e25, "matrices"), (1e-25, "matrices")]
)
def test_norms_whose_squares_are_out_of_range(size, form):
    model = ZOO["lookups"]()
    params, batch = cast(model.params, "float32"), cast(model.batch, "float32")
    scaled = model._replace(loss=lambda p, *example: size * model.loss(p, *example))
    norms = jax.jit(per_example.norms(model.loss), compiler_options=FAST)(params, *batch)
    limit = np.float32(0.5 * size * norms.min())
    gradient, info = clip(scaled, "auto", form=form)(limit, params, *batch)
    assert distance(info.norms / size, norms) < 1e-5
    wanted, _ = clip(model, "vmap")(np.float32(0.5 * norms.min()), params, *batch)
    assert distance(jax.tree.map(lambda g: g / size, gradient), wanted) < 1e-5
    assert info.clipped.all()


def test_a_huge_input_is_clipped_as_any_other():
    def loss(w, x):
        return x @ w

    x = jnp.array([[3e25, 4e25], [0.3, 0.4]])
    gradient, info = per_example.clipped_grad(loss, 1.0, reduce="sum")(jnp.zeros(2), x)
    assert distance(info.norms, np.array([5e25, 0.5])) < 1e-6
    assert distance(gradient, np.array([0.9, 1.2])) < 1e-6


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_microbatches_need_not_divide_the_batch(size):
    options = {"strategy": "microbatch", "microbatch_size": size}
    close(
        clip(MLP, **options)(np.float32(0.5), PARAMS, *BATCH),
        clip(MLP, "vmap")(np.float32(0.5), PARAMS, *BATCH),
        1e-5,
    )


@pytest.mark.parametrize("strategy", ["auto", "vmap", "microbatch"])
def test_auxiliary_outputs(strategy):
    def loss(params, x, y):
        return MLP.loss(params, x, y), {"x": x, "constant": 1.0, "w": params["w1"], "y": y}

    size = {"microbatch_size": 4} if strategy == "microbatch" else {}
    _, info = jax.jit(
        per_example.clipped_grad(loss, 1.0, has_aux=True, strategy=strategy, **size),
        compiler_options=FAST,
    )(PARAMS, *BATCH)
    assert np.array_equal(info.aux["x"], BATCH[0])
    assert np.array_equal(info.aux["y"], BATCH[1])
    assert np.array_equal(info.aux["w"], np.broadcast_to(PARAMS["w1"], (6, 5, 6)))
    assert np.array_equal(info.aux["constant"], np.ones(6))


def test_value_and_clipped_grad():
    mask = jnp.arange(6) != 1
    f = per_example.value_and_clipped_grad(MLP.loss, 0.5)
    value, gradient, info = f(PARAMS, *BATCH, example_mask=mask)
    assert distance(value, np.asarray(info.values)[np.asarray(mask)].mean()) < 1e-6
    wanted, _ = per_example.clipped_grad(MLP.loss, 0.5)(PARAMS, *BATCH, example_mask=mask)
    assert distance(gradient, wanted) == 0
    total, _, _ = per_example.value_and_clipped_grad(MLP.loss, 0.5, reduce="sum")(PARAMS, *BATCH)
    assert distance(total, np.asarray(info.values).sum()) < 1e-6


@pytest.mark.parametrize("form", ["auto", "gram"])
def test_bfloat16_has_float32_norms(form):
    model = ZOO["scanned layers with remat"]()
    params, batch = cast(model.params, jnp.bfloat16), cast(model.batch, jnp.bfloat16)

    def widened(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype != jnp.int32 else x, tree)

    def with_widened(params, *example):
        return model.loss(widened(params), *widened(example))

    gradient, info = clip(model, "auto", form=form)(np.float32(0.1), params, *batch)
    exact, exact_info = clip(model._replace(loss=with_widened), "auto")(
        np.float32(0.1), params, *batch
    )
    assert info.norms.dtype == jnp.float32
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(gradient))
    # The activations are rounded to 8 bits, and so are the gradients of them: that is what is left.
    assert distance(info.norms, exact_info.norms) < 0.02
    assert distance(jax.tree.map(np.float32, gradient), jax.tree.map(np.float32, exact)) < 0.05


PRODUCTS = {
    "product": lambda p, x: jnp.sum(jnp.tanh(x @ p["w"])),
    "lookup": lambda p, x: jnp.sum(jnp.tanh(p["w"][jnp.argmax(x, 1)] @ x[0, :3])),
    "convolution": lambda p, x: jnp.sum(
        jax.lax.conv_general_dilated(
            x[None], p["w"][None], (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")
        )
    ),
    "elementwise": lambda p, x: jnp.sum(jnp.tanh(x * p["w"][:, 0][None])),
}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_narrow_dtype_is_clipped_to_its_limit(name, dtype):
    rng = np.random.default_rng(0)
    params = {"w": jnp.array(rng.normal(size=(4, 3)), dtype)}
    x = jnp.array(rng.normal(size=(1, 5, 4)), dtype)
    for limit in (1e-4, 0.37):
        for form in ("gram", "matrices"):
            # Parameters in float32 show the sum before it is rounded to a narrow dtype.
            wide = {"w": params["w"].astype(jnp.float32)}

            def loss(p, x):
                return PRODUCTS[name]({"w": p["w"].astype(dtype)}, x)

            clip = per_example.clipped_grad(loss, limit, form=form, reduce="sum")
            gradient, info = jax.jit(clip, compiler_options=FAST)(wide, x)
            assert info.clipped.all()
            assert abs(np.linalg.norm(np.float64(gradient["w"])) - limit) < 1e-6 * limit


def test_a_mean_of_many_narrow_losses():
    value, _, _ = per_example.value_and_clipped_grad(lambda w, x: jnp.sum(w * x), 1.0)(
        jnp.ones(1, jnp.float16), jnp.full((70_000, 1), 2, jnp.float16)
    )
    assert value == 2


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_a_mean_in_float64_is_exact(strategy):
    with jax.enable_x64(True):
        x = jnp.ones((3, 1))
        clip = per_example.value_and_clipped_grad(
            lambda w, x: jnp.sum(w * x), 2.0, strategy=strategy
        )
        for mask, wanted in ((None, 1.0), (jnp.array([True, True, False]), 1.0)):
            _, gradient, _ = clip(jnp.ones(1), x * 1.0, example_mask=mask)
            assert abs(gradient[0] - wanted) < 1e-15


def test_the_precision_of_a_product_is_kept():
    def loss(w, x):
        return jnp.sum(jnp.tanh(jnp.dot(x, w, precision="highest")))

    for form in ("gram", "matrices"):
        clip = per_example.clipped_grad(loss, 1.0, form=form)
        text = str(jax.make_jaxpr(clip)(jnp.ones((3, 2)), jnp.ones((2, 4, 3))))
        products = text.count("dot_general[")
        assert products >= (2 if form == "matrices" else 4)
        assert len(re.findall(r"precision=\(?Precision.HIGHEST", text)) == products


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_a_loss_that_does_not_read_the_parameters(strategy):
    def loss(params, x):
        return jnp.sum(x) + jnp.sum(jax.lax.stop_gradient(params["w1"]))

    f = per_example.clipped_grad(loss, 1.0, strategy=strategy)
    gradient, info = f({"w1": PARAMS["w1"]}, BATCH[0])
    assert not gradient["w1"].any()
    assert not info.norms.any()
    assert info.nonfinite == 0


def test_inside_scan_jit_and_vmap_over_limits():
    f = per_example.clipped_grad(MLP.loss, 0.5)
    run = clip(MLP, "auto")
    wanted, _ = run(np.float32(0.5), PARAMS, *BATCH)

    def step(params, _):
        gradient, _ = f(params, *BATCH)
        return params, gradient

    _, found = jax.jit(lambda p: jax.lax.scan(step, p, length=2), compiler_options=FAST)(PARAMS)
    assert distance(jax.tree.map(lambda g: g[1], found), wanted) < 1e-6
    over_limits = jax.vmap(
        lambda limit: per_example.clipped_grad(MLP.loss, limit)(PARAMS, *BATCH)[0]
    )
    found = over_limits(jnp.array([0.1, 0.5, jnp.inf]))
    assert distance(jax.tree.map(lambda g: g[1], found), wanted) < 1e-6
