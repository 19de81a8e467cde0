"""The table names the rule that each parameter takes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import per_example

from .helpers import FAST
from .zoo import ZOO, cast_first


def explained(name, **options):
    model = ZOO[name]()
    params, example = cast_first(model)
    return per_example.explain(model.loss, params, *example, **options)


def forms(name, **options):
    return {row.parameter: row.form for row in explained(name, **options).rows}


def test_the_rule_of_each_parameter():
    assert forms("mlp") == {
        "['b1']": "entries",
        "['b2']": "entries",
        "['w1']": "Gram",
        "['w2']": "Gram",
    }
    assert set(forms("mlp", form="matrices").values()) == {"entries", "matrices"}
    assert forms("cnn")["['k']"] == "matrices"
    assert forms("cnn", form="gram")["['k']"] == "Gram"
    assert forms("without rules")["['unused']"] == "zero"


def test_only_the_affected_parameters_fall_back():
    table = explained("without rules")
    assert set(table.fallbacks) == {"['s']", "['w']"}
    for name in ("mlp", "cnn", "lenet", "lstm", "transformer tied", "scanned layers with remat"):
        assert explained(name).fallbacks == ()


def test_what_the_backward_pass_makes_for_nothing_is_no_fallback():
    def loss(params, x):
        x = jnp.concatenate([params["token"], x])
        x = jax.lax.dynamic_update_slice(x, params["first"], (0, 0))
        x = jax.lax.pad(x, params["edge"], [(1, 1, 0), (0, 0, 0)])
        return jnp.sum(jnp.tanh(jax.lax.clamp(params["low"], x, params["high"])))

    params = {name: jnp.ones((1, 4)) for name in ("token", "first")}
    params |= {name: jnp.ones(()) for name in ("edge", "low", "high")}
    assert per_example.explain(loss, params, jnp.ones((3, 4))).fallbacks == ()


def test_loops_are_named():
    uses = {row.parameter: row.uses for row in explained("lstm").rows}
    assert uses["['wh']"] == ("dot_general in scan of 4",)


def test_the_choice_is_by_cost():
    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w))

    def form(positions):
        (row,) = per_example.explain(loss, jnp.zeros((32, 32)), jnp.zeros((positions, 32))).rows
        return row.form, row.bytes

    assert form(1) == ("Gram", 4 * 2)
    assert form(4) == ("Gram", 4 * 2 * 16)
    assert form(64) == ("matrices", 4 * 32 * 32)


def test_a_weight_made_of_several_is_counted():
    def loss(p, x):
        return jnp.sum(jnp.tanh(x @ (p["w"] + p["a"] @ p["b"])))

    params = {"w": jnp.zeros((64, 64)), "a": jnp.zeros((64, 2)), "b": jnp.zeros((2, 64))}
    x = jnp.zeros((8, 4, 64))
    table = per_example.explain(loss, params, x[0], batch_size=8)
    told = sum(row.bytes for row in table.rows)
    taken = temporary(lambda p, x: per_example.norms(loss)(p, x), params, x)
    assert told >= 4 * 8 * 2 * 64 * 64
    assert told / 2 < taken < 2 * told


def test_memory_grows_with_the_batch():
    one, many = explained("lstm"), explained("lstm", batch_size=64)
    for a, b in zip(one.rows, many.rows, strict=True):
        assert b.bytes == 64 * a.bytes


def test_it_prints():
    table = explained("without rules", batch_size=32)
    text, page = str(table), table._repr_html_()
    assert "['s'] (no rule)" in text
    assert "Batch of 32" in text
    assert "Without a rule: " in text
    assert page.startswith("<table>")
    assert "[&#x27;s&#x27;] (no rule)" in page
    for row in table.rows:
        assert row.why in text


def temporary(function, *arguments):
    return (
        jax.jit(function, compiler_options=FAST)
        .lower(*arguments)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


def test_memory_is_near_that_of_an_ordinary_gradient():
    def loss(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    params = [jnp.zeros((256, 256)) for _ in range(3)]
    x = jnp.zeros((512, 256))
    ordinary = jax.grad(lambda p, x: jnp.mean(jax.vmap(loss, (None, 0))(p, x)))
    base = temporary(ordinary, params, x)
    ours = temporary(lambda p, x: per_example.clipped_grad(loss, 1.0)(p, x)[0], params, x)
    by_vmap = temporary(
        lambda p, x: per_example.clipped_grad(loss, 1.0, strategy="vmap")(p, x)[0], params, x
    )
    assert ours < 1.5 * base
    assert by_vmap > 50 * base


def test_a_gram_form_is_smaller_than_the_gradients():
    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w))

    w, x = jnp.zeros((512, 512)), jnp.zeros((8, 4, 512))
    bytes_of = {
        form: temporary(lambda w, x, f=form: per_example.norms(loss, form=f)(w, x), w, x)
        for form in ("gram", "matrices")
    }
    assert bytes_of["gram"] < bytes_of["matrices"] / 10
    assert np.isfinite(bytes_of["gram"])
