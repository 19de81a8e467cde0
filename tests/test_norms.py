"""Norms: against float64 over the whole range, in every dtype, and over devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip import devices, measures, norms
from jaxclip.scope import Scope

NORMS = {"l1": norms.l1, "l2": norms.l2, "linf": norms.linf, "l3": norms.lp(3), "rms": norms.rms}


def _true(name: str, x: np.ndarray) -> float:
    x = np.abs(np.asarray(x, np.longdouble))  # 15 bits of exponent: no power leaves its range
    return float(
        {
            "l1": lambda: x.sum(),
            "l2": lambda: np.sqrt((x**2).sum()),
            "linf": lambda: x.max(initial=0),
            "l3": lambda: (x**3).sum() ** (1 / np.longdouble(3)),
            "rms": lambda: np.sqrt((x**2).mean()) if x.size else 0.0,
        }[name]()
    )


@functools.cache
def _all_norms():
    return jax.jit(lambda x: {name: norm([[x]], [()])[0] for name, norm in NORMS.items()})


ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=400, deadline=None)
@given(st.lists(ANY_FLOAT32, min_size=6, max_size=6), st.sampled_from([1.0, 2.0**-120, 2.0**-149]))
def test_norms_over_the_whole_range_of_float32(entries, unit):
    x = (np.asarray(entries, np.float64) * unit).astype(np.float32)
    tiny, largest = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    for name, value in _all_norms()(x).items():
        true = _true(name, x)
        if true > float(largest) * (1 + 1e-6):
            assert np.isposinf(value), name
        elif true < float(largest) * (1 - 1e-6):
            # Subnormal numbers are flushed from sums, but only zeros have a norm of zero.
            np.testing.assert_allclose(value, true, rtol=1e-6, atol=6 * tiny, err_msg=name)
            assert (value >= tiny) == bool(np.any(x)), name


def test_norms_at_the_ends_of_the_range_of_float64():
    with jax.enable_x64(True):
        for size in (1.7e308, 6e307, 1e200, 1e-200, 2.3e-308):
            x = jnp.array([size, size / 1e3])
            flushed = np.finfo(np.float64).tiny
            for name in ("l2", "linf", "l3", "rms"):
                norm = NORMS[name]
                np.testing.assert_allclose(
                    norm([[x]], [()])[0], _true(name, x), rtol=1e-14, atol=flushed
                )
            slope = jax.grad(lambda x: norms.l2([[x]], [()])[0])(x)
            np.testing.assert_allclose(
                slope,
                np.array([1, 1e-3]) / np.sqrt(1 + 1e-6),
                rtol=1e-14,
                atol=1e-3 * (size < 1e-305),
            )


@pytest.mark.parametrize("size", [3.4e38, 1e38, 1e34, 1e25, 1e-25, 1e-34, 1.2e-36])
def test_norms_and_their_derivatives_at_the_ends_of_the_range(size):
    x = jnp.array([size, *[size / 1e2] * 5], jnp.float32)
    for name, value in _all_norms()(x).items():
        if _true(name, x) < float(np.finfo(np.float32).max):
            flushed = 5 * np.finfo(np.float32).tiny
            np.testing.assert_allclose(value, _true(name, x), rtol=1e-6, atol=flushed, err_msg=name)
    slope = jax.grad(jaxclip.global_norm)(x)
    np.testing.assert_allclose(
        slope, np.asarray(x, np.float64) / _true("l2", x), rtol=2e-6, atol=1e-38
    )


def test_norms_of_half_precision_are_those_of_its_float32_values():
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(np.random.default_rng(0).normal(size=1000), dtype)
        value = jaxclip.global_norm({"x": x})
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, np.linalg.norm(np.asarray(x, np.float64)), rtol=1e-6)


@pytest.mark.wide
@pytest.mark.slow  # 512 arrays are 20 seconds of compiling
def test_norms_where_optax_is_wrong():
    leaves = [jnp.full(16, 0.5, jnp.bfloat16) for _ in range(512)]
    tx = jaxclip.clip_by_global_norm(1.0)
    clipped, _ = tx.update(leaves, tx.init(leaves))
    true = np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in clipped))
    np.testing.assert_allclose(true, 1.0, rtol=1e-3)
    theirs, _ = optax.clip_by_global_norm(1.0).update(leaves, optax.EmptyState())
    assert np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in theirs)) > 1.4

    big = jnp.array([300, 300], jnp.float16)
    clipped, _ = tx.update(big, tx.init(big))
    np.testing.assert_allclose(clipped, np.full(2, 0.5**0.5), rtol=1e-3)


def test_norms_of_float64_and_complex():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=50))
        assert jaxclip.global_norm(x).dtype == jnp.float64
        np.testing.assert_allclose(jaxclip.global_norm(x), np.linalg.norm(x), rtol=1e-15)
        np.testing.assert_allclose(jaxclip.global_norm(x * 1e200), 1e200 * np.linalg.norm(x))
    z = jnp.array([3 + 4j, 0], jnp.complex64)
    assert float(jaxclip.global_norm(z)) == 5.0
    assert float(jaxclip.global_norm(z, ord=np.inf)) == 5.0
    assert jaxclip.global_norm(z).dtype == jnp.float32


def test_norms_of_nothing_and_of_what_is_not_finite():
    assert float(jaxclip.global_norm({})) == 0
    assert float(jaxclip.global_norm({"x": jnp.zeros((0, 3))}, ord=np.inf)) == 0
    for name, value in _all_norms()(jnp.array([1.0, jnp.nan, 1, 1, 1, 1])).items():
        assert np.isnan(value), name
    for name, value in _all_norms()(jnp.array([1.0, -jnp.inf, 1, 1, 1, 1])).items():
        assert not np.isfinite(value), name


def test_norms_have_the_derivatives_of_float64():
    x = np.array([0.5, -1.25, 2.0, 0.0])
    for name, norm in NORMS.items():
        slope = jax.grad(lambda x, norm=norm: norm([[x]], [()])[0])(jnp.asarray(x, jnp.float32))
        step = 1e-6
        numeric = [
            (_true(name, x + step * e) - _true(name, x - step * e)) / (2 * step) for e in np.eye(4)
        ]
        np.testing.assert_allclose(slope, numeric, atol=1e-4, err_msg=name)
        at_zero = jax.grad(lambda x, norm=norm: norm([[x]], [()])[0])(jnp.zeros(4))
        np.testing.assert_array_equal(at_zero, np.zeros(4))


def test_norms_have_second_derivatives():
    hessian = jax.hessian(lambda x: norms.l2([[x]], [()])[0])(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(hessian, [[0.128, -0.096], [-0.096, 0.072]], rtol=1e-5)


def test_norms_under_vmap_run_one_form_unless_a_member_needs_the_other():
    batch = jnp.stack([jnp.full(4, size) for size in (1.0, 1e25, 0.0, 1e-25)])
    values = jax.vmap(jaxclip.global_norm)(batch)
    np.testing.assert_allclose(values, [2, 2e25, 0, 2e-25], rtol=1e-6)
    text = jax.jit(jax.vmap(jaxclip.global_norm)).lower(batch).compile().as_text()
    assert text.count(" conditional(") == 1  # a branch, not a selection between both


def test_norms_refuse_an_ord_that_is_none():
    with pytest.raises(ValueError, match="1 <= ord"):
        norms.lp(0.5)
    with pytest.raises(TypeError, match="static_args"):
        jax.jit(lambda ord: jaxclip.global_norm(jnp.ones(3), ord))(2)


def _mesh():
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("check_vma", [True, False])
def test_norms_across_devices(check_vma):
    x, replicated = jnp.arange(1.0, 17.0).reshape(4, 4), jnp.array([3.0])
    for name, norm in NORMS.items():
        scope = Scope([("data", "model"), ()])

        def on_each(x, r, norm=norm, scope=scope):
            return measures.whole(norm)([x, r], scope)[0]

        mapped = jax.shard_map(
            on_each,
            mesh=_mesh(),
            in_specs=(P("data", "model"), P()),
            out_specs=P(),
            check_vma=check_vma,
        )
        parts = [x.ravel(), replicated]
        np.testing.assert_allclose(
            jax.jit(mapped)(x, replicated), _true(name, np.concatenate(parts)), rtol=1e-6
        )


def test_norms_across_devices_at_the_ends_of_the_range_and_under_pmap():
    tx = jaxclip.clip_by_global_norm(1.0, axis_name="data")
    params = jnp.ones(3)
    state = tx.init(params)  # outside of the map
    gradients = jnp.stack([jnp.full(3, size) for size in [1e25] * 4 + [1e-25] * 4])
    clipped = jax.pmap(lambda g: tx.update(g, state)[0], axis_name="data")(gradients)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(clipped, np.float64)), 1.0, rtol=1e-6)
    with pytest.raises(NameError, match="data"):
        tx.update(params, state)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norms_do_not_lose_what_is_not_finite_on_a_shard(bad):
    """On CPU the maximum of floats over devices drops nan."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    layout = jax.NamedSharding(mesh, P("data"))
    mapped = jax.jit(
        jax.shard_map(
            lambda x: {
                name: measures.whole(norm)(x, Scope("data"))[0] for name, norm in NORMS.items()
            },
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P(),
        )
    )
    for shard in range(8):
        x = jax.device_put(jnp.ones(8).at[shard].set(bad), layout)
        for values in (_all_norms()(x), mapped(x)):
            for name, value in values.items():
                assert not np.isfinite(value), (name, shard)
                assert np.isnan(value) == np.isnan(bad), (name, shard)


def _mapped(one, way):
    """`one(shard, replicated)` on 8 devices; what it returns is the same on each."""
    if way == "pmap":
        run = jax.pmap(one, axis_name="d", in_axes=(0, None))
        return lambda x, r: jax.tree.map(lambda out: out[0], run(x[:, None], r))
    return jax.jit(
        jax.shard_map(
            one,
            mesh=jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,)),
            in_specs=(P("d"), P()),
            out_specs=P(),
            check_vma=way == "tracked",
        )
    )


@pytest.mark.parametrize("way", ["tracked", "untracked", "pmap"])
def test_norms_across_for_measures_of_ones_choice(way):
    """A replicated leaf is counted once where types say that it is, and 8 times elsewhere."""
    shares, replicated = jnp.arange(1.0, 9.0).at[5].set(-20), jnp.array([3.0])
    found = np.concatenate([shares, *[replicated] * (1 if way == "tracked" else 8)])
    txs = {
        name: jaxclip.clip(measures.whole(norms.across(norm, "d")), 1e-3)
        for name, norm in NORMS.items()
    }
    states = {name: tx.init([shares[:1], replicated]) for name, tx in txs.items()}  # no map here

    def one(x, r):
        after = {name: tx.update([x, r], states[name])[1] for name, tx in txs.items()}
        own = {name: norms.across(norm, ["d"])([[x, r]], [()])[0] for name, norm in NORMS.items()}
        return own, {name: jaxclip.metrics(state)["clip"] for name, state in after.items()}

    run = _mapped(one, way)
    own, metrics = run(shares, replicated)
    for name in NORMS:
        for norm in (own[name], metrics[name].norm):
            np.testing.assert_allclose(norm, _true(name, found), rtol=1e-6)
    for shard in range(8):
        _, metrics = run(shares.at[shard].set(jnp.nan), replicated)
        assert all(np.isnan(one.norm) and one.nonfinite == 1 for one in metrics.values())


def test_norms_across_by_every_measure_and_after_what_the_clip_is_given():
    norm = norms.across(norms.linf, "d")
    x = jnp.arange(8.0)

    def run(measure, **options):
        tx = jaxclip.clip(measure, 1.0, **options)
        return _mapped(lambda x, r: jaxclip.metrics(tx.update(x, tx.init(x))[1]), "tracked")(x, x)

    for measure in (
        measures.per_leaf(norm),
        measures.per_group("all", norm),
        measures.Scoped(lambda g, scope: measures.whole(norm)(g, scope)),
        lambda g: measures.whole(norm)(g),
    ):
        assert run(measure)["clip"].norm == 7
    with pytest.raises(ValueError, match="out_specs"):  # each device has a norm of its own
        run(measures.whole(norm), axis_name=())
    with pytest.raises(ValueError, match="which axis of the array is spread"):
        tx = jaxclip.clip(measures.per_slice(0, norm), 1.0)
        _mapped(lambda x, r: tx.update(x, tx.init(x))[0], "tracked")(jnp.ones((8, 2)), x)
    with pytest.raises(TypeError, match="`PartitionSpec` or a tree to the clip"):
        norms.across(norms.l2, P(None, "d"))
    with pytest.raises(NameError, match="d"):
        norm([[x]], [()])


def test_norms_of_sharded_arrays_cost_one_scalar_all_reduce():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((8, 8)), jax.NamedSharding(mesh, P("data")))
    text = jax.jit(jaxclip.global_norm).lower({"a": x, "b": x}).compile().as_text()
    assert "all-to-all" not in text
    always = text[text.index("ENTRY") :]  # beside the branch that only extreme gradients take
    assert "all-gather" not in always
    [reduce] = [line for line in always.splitlines() if " all-reduce(" in line]
    assert reduce.split(" = ")[1].startswith("(f32[], f32[]) all-reduce(")


ALONE = [
    [1.0, 2.0, -3.0],
    [1e25, 1.0, 0.0],
    [1e-25, 1e-30, 0.0],
    [3e38, 1e30, 1e20],
    [0.0, 0.0, 0.0],
    [np.inf, 1e30, 1.0],
    [1e30, np.nan, np.inf],
]


@pytest.mark.parametrize("sizes", ALONE)
def test_norms_of_the_arrays_of_a_block(sizes):
    """Each as if it were alone, or lost beside one that is a billion times larger."""
    dtypes = (jnp.bfloat16, jnp.float32, jnp.float32)
    shapes = ((2,), (4,), (4,))
    block = [
        jnp.full(shape, x / 2, dtype) for x, shape, dtype in zip(sizes, shapes, dtypes, strict=True)
    ]

    @jax.jit
    def by_array(block):
        return {
            name: dataclasses.replace(norm, by_array=True)([block], [()])[0]
            for name, norm in NORMS.items()
        }

    most = max(abs(x) for x in sizes if np.isfinite(x))
    batch = jax.vmap(by_array)([jnp.stack([x, jnp.ones_like(x)]) for x in block])
    for name, (whole, alone) in by_array(block).items():
        together = NORMS[name]([block], [()])[0]
        np.testing.assert_allclose(whole, together, rtol=1e-6)
        for got in (alone, batch[name][1][0]):
            for value, x in zip(got, block, strict=True):
                x = np.asarray(x, np.float64).ravel()
                true = _true(name, x) if np.isfinite(x).all() else np.max(np.abs(x))
                np.testing.assert_allclose(value, true, rtol=1e-6, atol=1e-9 * most)


def test_norms_of_the_arrays_of_a_block_across_devices():
    x, r = jnp.arange(1.0, 17.0).reshape(4, 4), jnp.array([30.0])
    norm = dataclasses.replace(norms.l2, by_array=True)

    def on_each(x, r):
        spread = [("data", "model"), (), ("data", "model")]
        return norm([[x[0], r, x]], [()], devices.across([spread]))[0]

    mapped = jax.shard_map(on_each, mesh=_mesh(), in_specs=(P("data", "model"), P()), out_specs=P())
    for size in (1.0, 1e25, 1e-25):
        whole, alone = jax.jit(mapped)(size * x, size * r)
        each = np.array([np.linalg.norm(x[::2]), 30, np.linalg.norm(x)])
        np.testing.assert_allclose(alone / size, each, rtol=1e-6)
        np.testing.assert_allclose(whole / size, np.linalg.norm(each), rtol=1e-6)
    slope = jax.grad(lambda x: norm([[x, r]], [()])[0][1][0])
    np.testing.assert_allclose(slope(x), x / np.linalg.norm(x), rtol=1e-6)
