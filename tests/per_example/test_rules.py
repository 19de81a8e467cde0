"""Products of every form: einsums at random, in float64, against `vmap` of the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from jaxclip import per_example
from jaxclip.per_example import rules

from .helpers import FAST, close


def einsums(count, equal):
    """Specifications `activation,weight->output` over up to five letters, and their sizes."""
    rng = np.random.default_rng(int(equal))
    for _ in range(count):
        letters = list("abcde"[: rng.integers(2, 6)])
        sides = [rng.permutation(letters)[: rng.integers(1, len(letters) + 1)] for _ in range(2)]
        joined = sorted({*sides[0], *sides[1]})
        out = rng.permutation(joined)[: rng.integers(0, len(joined) + 1)]
        left, right, out = ("".join(side) for side in (*sides, out))
        yield left, right, out, {c: 2 if equal else int(rng.integers(1, 4)) for c in letters}


@pytest.mark.wide
@pytest.mark.parametrize("equal", [True, False], ids=["equal sizes", "sizes"])
@pytest.mark.parametrize("form", ["gram", "matrices"])
def test_einsums_of_every_form(form, equal):
    rng = np.random.default_rng(2)
    specs = list(einsums(40, equal))

    def normal(letters, sizes, *batch):
        return jnp.array(rng.normal(size=(*batch, *(sizes[c] for c in letters))))

    def loss(params, example):
        total = jnp.zeros(())
        for i, (left, right, out, _) in enumerate(specs):
            weighed = [(left, example[i][0]), (right, params[i])]
            (a, x), (b, y) = weighed if i % 2 else weighed[::-1]
            total += jnp.sum(jnp.sin(jnp.einsum(f"{a},{b}->{out}", x, y)) * example[i][1])
        return total

    with jax.enable_x64(True):
        params = [normal(right, sizes) for _, right, _, sizes in specs]
        batch = [(normal(a, sizes, 3), normal(out, sizes, 3)) for a, _, out, sizes in specs]
        limits = [0.3] * len(specs)
        ways = ({"form": form}, {"strategy": "vmap"})
        clips = [per_example.clipped_grad(loss, limits, **options) for options in ways]
        found, wanted = (jax.jit(clip, compiler_options=FAST)(params, batch) for clip in clips)
        close(found, wanted, 1e-12)
        assert any(np.any(clipped) for clipped in wanted[1].clipped)


def test_a_product_over_the_heads_and_their_features():
    # Gemma's output projection; the heads are as many as each is wide.
    def loss(w, x):
        return jnp.sum(jnp.sin(jnp.einsum("tnh,nhd->td", x, w)))

    rng = np.random.default_rng(0)
    w, x = (jnp.array(rng.normal(size=s), jnp.float32) for s in ((4, 4, 3), (5, 6, 4, 4)))
    found = per_example.clipped_grad(loss, 1.0)(w, x)
    close(found, per_example.clipped_grad(loss, 1.0, strategy="vmap")(w, x), 1e-5)


@pytest.mark.parametrize("form", ["auto", "gram", "matrices"])
def test_convolutions_without_spatial_dimensions_or_output(form):
    def flat(w, x):
        numbers = ("NC", "IO", "NC")
        y = jax.lax.conv_general_dilated(x[None], w, (), (), dimension_numbers=numbers)
        return jnp.sum(jnp.sin(y))

    def empty(w, x):
        numbers = ("NHC", "HIO", "NHC")
        y = jax.lax.conv_general_dilated(x[None], w, (1,), "VALID", dimension_numbers=numbers)
        assert y.size == 0
        return jnp.sum(jnp.sin(y)) + jnp.sum(x) * jnp.sum(w)

    rng = np.random.default_rng(0)
    for loss, shapes in ((flat, [(3, 2), (4, 3)]), (empty, [(5, 3, 2), (4, 2, 3)])):
        w, x = (jnp.array(rng.normal(size=s), jnp.float32) for s in shapes)
        found = per_example.clipped_grad(loss, 1.0, form=form)(w, x)
        close(found, per_example.clipped_grad(loss, 1.0, strategy="vmap")(w, x), 1e-5)


DAMPED = core.Primitive("damped_dot")  # x @ w / 2


def damped_dot(x, w):
    return DAMPED.bind(x, w)


def define():
    def run(x, w):
        return x @ w / 2

    def batched(args, dims):
        (x, w), (of_x, of_w) = args, dims
        assert of_x == 0 and of_w is None
        return damped_dot(x, w), 0

    DAMPED.def_impl(run)
    DAMPED.def_abstract_eval(
        lambda x, w: jax.core.ShapedArray((*x.shape[:-1], w.shape[1]), x.dtype)
    )
    mlir.register_lowering(DAMPED, mlir.lower_fun(run, multiple_results=False))
    batching.primitive_batchers[DAMPED] = batched
    ad.defjvp(
        DAMPED,
        lambda dx, x, w: damped_dot(dx, w),
        lambda dw, x, w: x @ dw / 2,
    )
    ad.primitive_transposes[DAMPED] = lambda g, x, w: (g @ w.T / 2, None)


def damped_loss(w, x):
    return jnp.sum(jnp.sin(damped_dot(x, w)))


def rule_with(scale):
    def factors(site, act, out_grad):
        u = rules.arranged(act, act.ndim - 2, (), (0,), (1,))
        return rules.Factors(u, scale * rules.arranged(out_grad, act.ndim - 2, (), (0,), (1,)))

    return rules.Rule(
        activation=lambda eqn, weight, examples: 0 if weight == 1 else None,
        factors=factors,
        layout=lambda site: rules.Layout((), (0,), (1,)),
    )


def test_a_rule_of_ones_own(monkeypatch):
    define()
    rng = np.random.default_rng(0)
    w, x = (jnp.array(rng.normal(size=s), jnp.float32) for s in ((3, 40), (6, 2, 3)))
    with pytest.raises(AssertionError, match="No rule is met by params"):
        per_example.check_rule(damped_loss, w, x)
    monkeypatch.setitem(per_example.RULES, DAMPED, rule_with(0.5))
    per_example.check_rule(damped_loss, w, x)
    assert per_example.explain(damped_loss, w, x[0]).rows[0].form == "Gram"
    monkeypatch.setitem(per_example.RULES, DAMPED, rule_with(1.0))
    with pytest.raises(AssertionError, match="the norms differ"):
        per_example.check_rule(damped_loss, w, x)
