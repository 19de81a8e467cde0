"""Products of every form: einsums at random, in float64, against `vmap` of the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import per_example

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
