"""Per-example clipping in every form lowers for CPU, CUDA and TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import per_example, shrinks
from tests.hlo import check_lowers_everywhere

from .helpers import cast
from .zoo import ZOO

FORMS = {
    "auto": {},
    "vmap": {"strategy": "vmap"},
    "microbatch": {"strategy": "microbatch", "microbatch_size": 2},
    "gram": {"form": "gram"},
    "matrices": {"form": "matrices"},
    "bound": {"bound": True, "reduce": "sum"},
    "propagate": {"nonfinite": "propagate"},
    "AUTO-S": {"shrink": functools.partial(shrinks.normalize, eps=0.01)},
}


def problem(name):
    model = ZOO[name]()
    return model.loss, cast(model.params, "float32"), cast(model.batch, "float32")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_lowers(form):
    loss, params, batch = problem("transformer tied")
    clip = per_example.value_and_clipped_grad(loss, 0.5, **FORMS[form])
    mask = jnp.ones(len(jax.tree.leaves(batch)[0]), bool)
    check_lowers_everywhere(
        lambda mask, *args: clip(*args, example_mask=mask), mask, params, *batch
    )


DAILY = ("cnn", "lookups", "lstm")


@pytest.mark.parametrize(
    "name",
    [name if name in DAILY else pytest.param(name, marks=pytest.mark.wide) for name in ZOO],
)
def test_every_model_lowers(name):
    loss, params, batch = problem(name)
    check_lowers_everywhere(per_example.clipped_grad(loss, 0.5), params, *batch)


def test_a_tree_of_limits_and_norms_alone_lower():
    loss, params, batch = problem("mlp")
    limits = jax.tree.map(lambda x: 0.5, params)
    check_lowers_everywhere(per_example.clipped_grad(loss, limits), params, *batch)
    check_lowers_everywhere(per_example.norms(loss), params, *batch)
    assert all(np.size(x) for x in jax.tree.leaves(params))
