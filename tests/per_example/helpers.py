"""Comparing two ways to the same clipped gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import per_example

# Compilation is most of the time of these tests, and their models are small.
FAST = {"xla_backend_optimization_level": 0}


def cast(tree, dtype):
    def one(x):
        x = np.asarray(x)
        return jnp.asarray(x, dtype if x.dtype.kind == "f" else np.int32)

    return jax.tree.map(one, tree)


def clip(model, strategy, **options):
    """`(limit, params, *batch) -> (gradient, info)`, compiled."""

    def run(limit, params, *batch):
        way = per_example.clipped_grad(model.loss, limit, strategy=strategy, **options)
        return way(params, *batch)

    return jax.jit(run, compiler_options=FAST)


def distance(tree, reference):
    """The largest difference, relative to the largest entry of the reference."""
    leaves, wanted = jax.tree.leaves(tree), jax.tree.leaves(reference)
    assert [np.shape(x) for x in leaves] == [np.shape(x) for x in wanted]
    largest = max(np.abs(x).max(initial=0) for x in wanted)
    if largest == 0:
        return max(np.abs(x).max(initial=0) for x in leaves)
    pairs = zip(leaves, wanted, strict=True)
    differences = [np.abs(np.asarray(x) - np.asarray(y)).max(initial=0) for x, y in pairs]
    return np.max(differences) / largest  # `np.max` of a nan is nan, which is not within anything


def close(result, reference, tolerance):
    """Whether two results of `clipped_grad` agree."""
    (gradient, info), (wanted, wanted_info) = result, reference
    assert distance(gradient, wanted) <= tolerance
    assert distance(info.norms, wanted_info.norms) <= tolerance
    assert distance(info.values, wanted_info.values) <= tolerance
    same = jax.tree.map(np.array_equal, info.clipped, wanted_info.clipped)
    assert all(jax.tree.leaves(same))
    assert info.nonfinite == wanted_info.nonfinite
