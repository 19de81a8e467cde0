"""`clip` itself: its options, its errors, and every measure with every threshold and shrink."""

import dataclasses
import functools
import itertools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import measures, shrinks, thresholds
from tests.helpers import METHODS, close, same_bits, tree

MEASURES = {
    "whole": measures.whole(),
    "per_group": measures.per_group({"conv": "a", "temperature": "b"}),
    "per_slice": measures.per_slice(0),
    "per_leaf": measures.per_leaf(),
    "per_unit": measures.per_unit(),
    "per_entry": measures.per_entry(),
}
THRESHOLDS = {
    "scheduled": thresholds.scheduled(optax.linear_schedule(0.5, 0.1, 10)),
    "lowest": thresholds.lowest(0.5, thresholds.relative(0.1)),
}
SHRINKS = [
    shrinks.hard,
    shrinks.smooth,
    shrinks.inverse_sqrt,
    shrinks.tanh,
    shrinks.drop,
    partial(shrinks.band, low=0.5),
    shrinks.normalize,
    partial(shrinks.psac, r=0.1),
]
TABLE = list(itertools.product(MEASURES, THRESHOLDS))


@pytest.mark.parametrize(("measure", "threshold"), TABLE, ids=["-".join(pair) for pair in TABLE])
def test_core_every_measure_with_every_threshold_and_shrink(measure, threshold):
    """After the clip, no block is larger than its limit; at an infinite one nothing moves."""
    params, gradient = tree(seed=1), tree(size=10.0)

    @jax.jit
    def of_all(gradient):
        outs = []
        for shrink in SHRINKS:
            tx = jaxclip.clip(MEASURES[measure], THRESHOLDS[threshold], shrink)
            out, state = tx.update(gradient, tx.init(params), params)
            outs.append((MEASURES[measure](out)[0], jaxclip.metrics(state)["clip"]))
        return outs, MEASURES[measure](params)[0]

    outs, param_norms = of_all(gradient)
    for norms, metrics in outs:
        for norm, param_norm in zip(
            jax.tree.leaves(norms), jax.tree.leaves(param_norms), strict=True
        ):
            relative = 0.1 * np.maximum(param_norm, 1e-3)
            limit = np.minimum(relative, 0.5) if threshold == "lowest" else 0.5
            assert np.all(np.asarray(norm) <= limit * (1 + 1e-6))
        assert float(metrics.clipped) == 1 or float(metrics.clipped_norm) > 0
        assert float(metrics.clipped_norm) <= float(metrics.limit) * (1 + 1e-6)


def test_core_a_limit_may_be_a_number_an_array_a_schedule_or_a_tree():
    gradient = tree(size=10.0)
    limits = {
        "number": 0.5,
        "integer": 1,
        "numpy": np.float32(0.5),
        "array": jnp.array(0.5),
        "bfloat16": jnp.array(0.5, jnp.bfloat16),
        "schedule": optax.constant_schedule(0.5),
        "tree": {"conv": {"bias": 0.5, "kernel": optax.constant_schedule(0.5)}, "temperature": 0.5},
        "prefix": {"conv": 0.5, "temperature": thresholds.constant(0.5)},
    }
    by_number = jaxclip.clip_by_leaf_norm(0.5)
    expected, _ = by_number.update(gradient, by_number.init(gradient))
    for name, limit in limits.items():
        tx = jaxclip.clip_by_leaf_norm(limit)
        out, _ = tx.update(gradient, tx.init(gradient))
        if name != "integer":
            close(out, expected)
        else:
            assert float(jaxclip.global_norm(out["conv"]["kernel"])) <= 1 + 1e-6
    unlimited = jaxclip.clip_by_leaf_norm({"conv": None, "temperature": 0.5})
    out, _ = unlimited.update(gradient, unlimited.init(gradient))
    assert same_bits(out["conv"], gradient["conv"])
    traced = jax.jit(
        lambda limit: jaxclip.clip_by_global_norm(limit).update(
            gradient, jaxclip.clip_by_global_norm(limit).init(gradient)
        )[0]
    )
    assert float(jaxclip.global_norm(traced(0.5))) <= 0.5 * (1 + 1e-6)
    assert float(jaxclip.global_norm(traced(-1.0))) == 0.0  # negative and traced: as 0


def test_core_a_schedule_sees_the_step_and_works_on_bfloat16():
    tx = jaxclip.clip_by_global_norm(optax.linear_schedule(1.0, 0.5, 2))
    gradient = {"x": jnp.full(4, 100.0, jnp.bfloat16)}
    state = tx.init(gradient)
    seen = []
    for _ in range(4):
        out, state = tx.update(gradient, state)
        seen.append(float(jaxclip.metrics(state)["clip"].limit))
        assert out["x"].dtype == jnp.bfloat16
    assert seen == [1.0, 0.75, 0.5, 0.5]


@pytest.mark.parametrize(
    ("limit", "error", "says"),
    [
        (-1.0, ValueError, "`limit` is -1.0.*at least 0.*math.inf"),
        (float("nan"), ValueError, "`limit` is nan"),
        (np.float32(-1), ValueError, "`limit` is -1"),
        (True, TypeError, "True, of type bool"),
        ("1.0", TypeError, "'1.0', of type str.*a number"),
        (1j, TypeError, "complex"),
        (object(), TypeError, "object"),
        (np.array(True), TypeError, "bool"),
        (jnp.ones(3), ValueError, r"shape \(3,\).*scalar"),
    ],
)
def test_core_what_is_no_limit_is_refused(limit, error, says):
    with pytest.raises(error, match=says):
        jaxclip.clip_by_global_norm(limit)
    with pytest.raises(error):
        jaxclip.clip_by_value(limit)


def test_core_errors_name_what_is_known():
    gradient = {"head": jnp.ones(2), "body": jnp.ones(2)}
    labels = {"head": "a", "body": "b"}
    misspelt = jaxclip.clip_by_group_norm(labels, {"a": 1.0, "B": 1.0})
    with pytest.raises(ValueError, match=r"\['b', 'a'\].*unknown: \['B'\]|\['a', 'b'\].*unknown"):
        misspelt.init(gradient)
    with pytest.raises(ValueError, match=r"without a limit: \['b'\]"):
        jaxclip.clip_by_group_norm(labels, {"a": 1.0}).init(gradient)
    with pytest.raises(ValueError, match="labels have the structure"):
        jaxclip.clip_by_group_norm({"tail": "a"}, {"a": 1.0}).init(gradient)
    with pytest.raises(ValueError, match="no prefix"):
        jaxclip.clip_by_leaf_norm([1.0, 2.0]).init(gradient)
    with pytest.raises(ValueError, match=r"`params` is missing.*update"):
        tx = jaxclip.adaptive_grad_clip()
        tx.update(gradient, tx.init(gradient))
    with pytest.raises(ValueError, match="`params` is missing"):
        tx = jaxclip.clip_weights(1.0)
        tx.update(gradient, tx.init(gradient))
    with pytest.raises(ValueError, match='"propagate" or "zero"'):
        jaxclip.clip_by_global_norm(1.0, nonfinite="ignore")
    with pytest.raises(ValueError, match=r"so no axis 1 to keep"):
        jaxclip.clip_by_unit_norm(1.0, axes=1).init(gradient)


def test_core_zero_gradient_and_zero_limit():
    tx = jaxclip.clip_by_global_norm(0.0)
    zeros, ones = jnp.zeros(3), jnp.ones(3)
    assert same_bits(tx.update(zeros, tx.init(zeros))[0], zeros)
    assert same_bits(tx.update(ones, tx.init(zeros))[0], zeros)
    slope = jax.grad(lambda g: jnp.sum(jaxclip.clip_by_global_norm(1.0).update(g, tx.init(g))[0]))
    np.testing.assert_array_equal(slope(zeros), ones)


@pytest.mark.parametrize("shrink", SHRINKS, ids=lambda shrink: getattr(shrink, "__name__", None))
def test_core_extreme_gradients_are_clipped_to_the_limit(shrink):
    """Also where the factor is out of range of float32: a limit of 1e-30, a norm of 3e38."""

    @jax.jit
    def clipped(gradient, limit):
        tx = jaxclip.clip(measures.whole(), limit, shrink)
        return tx.update(gradient, tx.init(gradient))[0]

    sizes = (3e38, 1e38, 1e25, 1.0, 1e-25, 1e-34)
    for size, limit in itertools.product(sizes, (1e25, 1.0, 1e-3, 1e-30, 1e-36)):
        gradient = jnp.array([size, size / 10, -size / 10], jnp.float32)
        out = np.asarray(clipped(gradient, limit), np.float64)
        norm = np.linalg.norm(out)
        assert np.isfinite(norm) and norm <= limit * (1 + 1e-6)
        if shrink is SHRINKS[-1] and size <= 1:  # psac does not normalize what is smaller than r
            continue
        if size > limit * 1e5 and shrink is not shrinks.drop:
            np.testing.assert_allclose(norm, limit, rtol=2e-5)
            np.testing.assert_allclose(out / norm, np.array([10, 1, -1]) / 102**0.5, rtol=1e-5)
        if size < limit / 1e5 and shrink in (shrinks.hard, shrinks.drop):
            assert same_bits(out, np.asarray(gradient, np.float64))


@functools.cache
def _clipped_alone(dtype):
    """Every value as a gradient of its own, by a global norm; and by value."""

    @jax.jit
    def run(values, limit):
        by_value = jaxclip.clip_by_value(limit)
        whole = jaxclip.clip_by_global_norm(limit)
        return (
            jax.vmap(lambda x: whole.update(x, whole.init(x))[0])(values),
            by_value.update(values, by_value.init(values))[0],
        )

    return run


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3b11fnuz]
)
def test_core_every_value_of_the_small_dtypes(dtype):
    """All 256 or 65,536 of them, against a set of limits, in float64."""
    bits = jnp.finfo(dtype).bits
    unsigned = np.dtype(f"uint{bits}")
    values = jnp.asarray(np.arange(2**bits, dtype=unsigned).view(dtype))
    with np.errstate(invalid="ignore"):  # signaling nans
        exact = np.asarray(values).astype(np.float64)
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).smallest_subnormal)
    for limit in (0.0, 1e-30, 6e-8, 1e-3, 1.0, 300.0, 1e30, np.inf):
        for outs in _clipped_alone(dtype)(values, jnp.float32(limit)):
            outs = np.asarray(outs)
            with np.errstate(invalid="ignore"):
                out = outs.astype(np.float64)
            bad = ~np.isfinite(exact)
            assert np.isnan(out[bad]).all()
            within = ~bad & (np.abs(exact) <= np.float32(limit))
            raw = np.asarray(values).view(unsigned)
            np.testing.assert_array_equal(outs.view(unsigned)[within], raw[within])
            beyond = ~bad & ~within
            sizes = np.abs(out[beyond])
            assert np.all(sizes <= limit * (1 + 4 * eps) + tiny)
            assert np.all(sizes >= limit * (1 - 4 * eps) - max(tiny, 1.2e-38))
            assert np.all(np.sign(out[beyond]) * np.sign(exact[beyond]) >= 0)


def test_core_a_traced_limit_of_nan_is_a_gradient_that_is_not_finite():
    gradient = jnp.array([3.0, 4.0])
    for shrink in SHRINKS:
        for nonfinite, expected in (("propagate", np.nan), ("zero", 0.0)):
            tx = jaxclip.clip(measures.whole(), jnp.float32(np.nan), shrink, nonfinite=nonfinite)
            out, state = tx.update(gradient, tx.init(gradient))
            np.testing.assert_array_equal(out, [expected] * 2)
            assert int(jaxclip.metrics(state)["clip"].nonfinite) == 1


def test_core_only_zero_is_zero_at_a_limit_of_zero():
    """Subnormal numbers, which arithmetic flushes, are not the zero that is left as it is."""
    gradient = jnp.array([1e-40, -3e-45, 0.0], jnp.float32)
    for tx in (
        jaxclip.clip_by_global_norm(0.0),
        jaxclip.clip_by_leaf_norm(0.0),
        jaxclip.clip_by_value(0.0),
    ):
        assert not np.any(np.asarray(tx.update(gradient, tx.init(gradient))[0]))
        assert same_bits(tx.update(-0 * gradient, tx.init(gradient))[0], -0 * gradient)


def test_core_a_tree_of_limits_may_be_callable():
    """As an Equinox module is: it is no schedule for being so."""
    layer = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    limits = eqx.tree_at(lambda m: (m.weight, m.bias), layer, (0.5, 0.25))
    tx = jaxclip.clip_by_leaf_norm(limits)
    gradient = jax.tree.map(lambda x: 100 * jnp.ones_like(x), layer)
    out, _ = tx.update(gradient, tx.init(layer))
    np.testing.assert_allclose(np.linalg.norm(out.weight), 0.5, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(out.bias), 0.25, rtol=1e-6)
    schedule = jax.tree_util.Partial(lambda step: jnp.float32(0.5))
    assert (
        float(jaxclip.metrics(_after(jaxclip.clip_by_global_norm(schedule)))["clip"].limit) == 0.5
    )


def _after(tx):
    gradient = jnp.array([3.0, 4.0])
    return tx.update(gradient, tx.init(gradient))[1]


def test_core_an_update_of_none_where_init_had_an_array():
    """What has no gradient at a step keeps what is remembered of it."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    for tx in (
        jaxclip.clip_by_leaf_norm(0.5),
        jaxclip.clip_by_norm_ratio(1.5),
        jaxclip.adagc(),
        jaxclip.spam_clip(warmup=1),
        jaxclip.clip_by_value(0.5),
        jaxclip.u_clip(0.5),
    ):
        _, state = tx.update(params, tx.init(params), params)
        out, after = tx.update({"a": params["a"], "b": None}, state, params)
        assert out["b"] is None and out["a"].shape == (2,)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert same_bits(_of_leaf("b", after), _of_leaf("b", state))
        tx.update(params, after, params)


def _of_leaf(name, state):
    """What a state remembers of one leaf."""
    entries, _ = jax.tree_util.tree_flatten_with_path(state)
    return [x for path, x in entries if f"['{name}']" in jax.tree_util.keystr(path)]


@dataclasses.dataclass
class _Unhashable:
    """A measure that can be compared, and so has no hash."""

    def __call__(self, updates):
        return measures.whole()(updates)


_WRAPPERS = (jaxclip.skip_nonfinite, jaxclip.skip_on_spike)


def test_core_errors_say_what_to_do():
    gradient = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(TypeError, match=r"makes a measure\. Call it: `measures\.whole"):
        jaxclip.clip(measures.whole, 1.0)
    jaxclip.clip(_Unhashable(), 1.0)
    for returned, what in ((jnp.ones(3), r"an array of shape \(3,\)"), (None, "None")):
        for method in (jaxclip.clip_by_global_norm, jaxclip.clip_by_value):
            tx = method(lambda step, returned=returned: returned)
            with pytest.raises(ValueError, match=f"returned {what}.*one limit"):
                tx.update(gradient, tx.init(gradient))
    with pytest.raises(TypeError, match="`axes` is"):
        jaxclip.clip_by_unit_norm(1.0, axes="0").init(gradient)
    with pytest.raises(TypeError, match=r"`shrink` is 'smooth'.*`shrinks.smooth`"):
        jaxclip.clip(measures.whole(), 1.0, "smooth")
    with pytest.raises(TypeError, match=r"no argument `max_norm`.*\(limit, "):
        jaxclip.clip_by_global_norm(max_norm=1.0)
    with pytest.raises(TypeError, match=r"None.*math\.inf"):
        jaxclip.clip_by_global_norm(None)
    with pytest.raises(TypeError, match=r"`state = tx.init\(params\)`"):
        jaxclip.clip_by_global_norm(1.0).update(gradient, ())
    for tx in (jaxclip.u_clip(1.0), *[w(optax.sgd(0.1)) for w in _WRAPPERS]):
        with pytest.raises(TypeError, match=r"`state = tx.init\(params\)`"):
            tx.update(gradient, (), gradient)
    with pytest.raises(TypeError, match=r"the clip 'a', and this is 'b'"):
        other = jaxclip.clip_by_global_norm(1.0, name="a").init(gradient)
        jaxclip.clip_by_global_norm(1.0, name="b").update(gradient, other)
    with pytest.raises(ValueError, match=r"0 to 1\. Did you mean 0\.9"):
        jaxclip.clip_by_quantile(90.0)
    with pytest.raises(ValueError, match=r"0 to 100.*give 10"):
        jaxclip.autoclip(0.1)
    with pytest.raises(ValueError, match="`initial` is 0"):
        jaxclip.clip_by_quantile(initial=0)
    with pytest.raises(ValueError, match=r"Did you mean 0\.9"):
        jaxclip.clip_by_quantile(np.float32(90))
    with pytest.raises(ValueError, match="`rate` is inf"):
        jaxclip.clip_by_quantile(rate=np.inf)


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
def test_core_errors_name_the_leaf_and_the_argument(case):
    gradient = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    tx = case.make()
    state = tx.init(gradient)
    with pytest.raises(ValueError, match=r"lack \['b'\]"):
        tx.update({"a": gradient["a"]}, state, gradient)
    with pytest.raises(ValueError, match=r"have \['c'\]"):
        tx.update({**gradient, "c": jnp.ones(2)}, state, gradient)
    for name, value in case.args.items():
        if isinstance(value, float):
            with pytest.raises(ValueError, match=f"`{name}` is -1"):
                case.make(**{name: -1.0})


def test_core_derivatives_at_small_norms_and_of_singular_values():
    """Those of a quotient, formed without the square of a norm; and through the values compared."""

    def slope(tx, gradient, weights):
        return jax.grad(lambda g: jnp.sum(tx.update(g, tx.init(g))[0] * weights))(gradient)

    weights = jnp.array([1.0, 2.0])
    for size in (1.0, 1e-19, 1e-30, 1e25):
        for method in (jaxclip.clip_by_global_norm, jaxclip.normalize_by_global_norm):
            found = slope(method(0.5 * size), size * jnp.array([0.6, 0.8]), weights)
            np.testing.assert_allclose(found, [-0.16, 0.12], rtol=1e-5)
    gradient, weights = jnp.array([[2.0, 1.0], [0.3, 3.0]]), jnp.arange(4.0).reshape(2, 2)
    found = slope(jaxclip.clip_singular_values(1.0), gradient, weights)
    np.testing.assert_allclose(found, [[0.0386, -0.2759], [0.2759, 0.0386]], atol=1e-4)


def test_core_an_infinite_hyperparameter_is_no_limit():
    ones, zeros = jnp.ones(2), jnp.zeros(2)
    relative = jaxclip.adaptive_grad_clip(np.inf, eps=0.0)
    assert same_bits(relative.update(ones, relative.init(zeros), zeros)[0], ones)
    for rule in ("adaptive", "cap"):
        tx = jaxclip.zclip(np.inf, warmup=2, limit=None, rule=rule)
        state = tx.init(ones)
        for _ in range(4):
            out, state = tx.update(ones, state)
            assert same_bits(out, ones)


def test_core_a_group_may_have_no_gradient_at_a_step():
    labels = {"a": "first", "b": "second"}
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    for given in (
        labels,
        lambda tree: jax.tree.map(lambda x: "first" if x.size == 2 else "second", tree),
    ):
        tx = jaxclip.clip(
            measures.per_group(given, groups=("first", "second")),
            {"first": thresholds.ema(1.5, decay=0.9), "second": 0.5},
        )
        _, state = tx.update(params, tx.init(params))
        out, after = tx.update({"a": params["a"], "b": None}, state)
        assert out["b"] is None
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert same_bits(optax.tree.map_params(tx, lambda x: x, after), after)


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
def test_core_leaves_may_be_python_numbers(case):
    numbers = {"a": 3.0, "b": -0.25, "w": jnp.ones((2, 3))}
    arrays = jax.tree.map(jnp.asarray, numbers)
    tx = case.make()
    out, _ = tx.update(numbers, tx.init(numbers), numbers)
    close(out, tx.update(arrays, tx.init(arrays), arrays)[0])


def test_core_the_norm_that_was_measured_may_be_an_integer():
    gradient = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(jaxclip.scale_to_norm(gradient, 5, 1.5), [0.9, 1.2], rtol=1e-6)


def test_core_the_two_halves_are_the_whole():
    gradient = tree(size=3.0)
    tx = jaxclip.clip_by_global_norm(0.5)
    whole, _ = tx.update(gradient, tx.init(gradient))
    close(jaxclip.scale_to_norm(gradient, jaxclip.global_norm(gradient), 0.5), whole)
    assert same_bits(jaxclip.scale_to_norm(gradient, 1.0, 2), gradient)
    assert all(
        np.isnan(x).all() for x in jax.tree.leaves(jaxclip.scale_to_norm(gradient, np.inf, 1.0))
    )
    with pytest.raises(ValueError, match="negative"):
        jaxclip.scale_to_norm(gradient, 1.0, -1.0)


def test_core_extra_args_reach_the_threshold():
    seen = thresholds.Threshold(
        lambda norm: (), lambda norm, state, now: (now.extra_args["value"], state)
    )
    tx = jaxclip.clip(measures.whole(), seen)
    gradient = jnp.array([3.0, 4.0])
    out, _ = tx.update(gradient, tx.init(gradient), value=jnp.array(0.5), other="ignored")
    np.testing.assert_allclose(out, [0.3, 0.4], rtol=1e-6)


def test_core_one_clip_is_one_branch_and_two_passes():
    tx = jaxclip.clip_by_global_norm(1.0)
    gradient = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
    compiled = jax.jit(tx.update).lower(gradient, tx.init(gradient)).compile()
    text = compiled.as_text()
    assert text.count(" conditional(") == 1
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 64 * 4
