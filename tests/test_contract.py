"""The contract, for every method of the table in `tests/helpers.py`.

What compiles is what takes the time: `step` is compiled once for all tests of a method, which run
in one process (`conftest.py`), and what is a matter of shapes, dtypes or shardings is only traced.
"""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.helpers import METHODS, Case, close, framework_trees, same_bits, tree, true_norms

METHOD = pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
PARAMS = tree(seed=1)


@functools.cache
def step(case: Case, nonfinite: str | None = None):
    """One update of the method; an option of `clip` that is None is left to its default."""
    return jax.jit(case.make(**({"nonfinite": nonfinite} if nonfinite else {})).update)


@METHOD
@pytest.mark.parametrize("dtypes", [[jnp.float32], [jnp.bfloat16, jnp.float16]], ids=["32", "16"])
def test_contract_no_block_exceeds_its_limit(case, dtypes):
    params = tree(*dtypes, seed=1)
    state = case.make().init(params)
    ulps = 1 + 4 * max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    for size in (1e-3, 1.0, 100.0) + ((1e25, 1e-25) if jnp.float16 not in dtypes else ()):
        updates = tree(*dtypes, size=size)
        clipped, after = step(case)(updates, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(clipped, updates)
        chex.assert_tree_all_finite(clipped)
        if case.limit is not None:
            what = optax.apply_updates(params, clipped) if case.blocks == "params" else clipped
            assert np.all(true_norms(case.blocks, what) <= case.limit * ulps)
        elif case.blocks == "whole":
            [metrics] = jaxclip.metrics(after).values()
            assert true_norms("whole", clipped)[0] <= float(metrics.limit) * ulps


@METHOD
def test_contract_within_the_limit_is_the_identity_bit_for_bit(case):
    tx = case.make_idle()
    updates = tree(jnp.float32, jnp.bfloat16, size=1e-3)
    updates["conv"]["bias"] = jnp.array([-0.0, 1e-40, 3.0, 0, 0, 0, 0, 1], jnp.bfloat16)
    updates["temperature"] = jnp.array(1e-40)  # subnormal
    clipped, _ = jax.jit(tx.update)(updates, tx.init(PARAMS), tree(jnp.float32, jnp.bfloat16))
    assert same_bits(clipped, updates)


@METHOD
def test_contract_zero_is_unchanged(case):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    small = jax.tree.map(lambda x: 0.1 * x, PARAMS)
    clipped, state = step(case)(zeros, case.make().init(small), small)
    assert same_bits(clipped, zeros)
    assert not any(bool(jnp.any(jnp.isnan(x))) for x in jax.tree.leaves(state))


@METHOD
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_contract_nonfinite_cannot_hide_and_teaches_nothing(case, nonfinite):
    update = step(case, None if nonfinite == "propagate" else nonfinite)
    updates = tree()
    _, before = update(updates, case.make().init(PARAMS), PARAMS)
    for bad in (np.nan, np.inf, -np.inf):
        updates["conv"]["bias"] = updates["conv"]["bias"].at[1].set(bad)
        clipped, after = update(updates, before, PARAMS)
        moved = optax.apply_updates(PARAMS, clipped) if case.blocks == "params" else clipped
        hit = {"entry": moved["conv"]["bias"][1:2], "params": moved["conv"]["bias"][1:2]}.get(
            case.blocks, moved if case.blocks == "whole" else moved["conv"]["bias"]
        )
        expected = 0.0 if nonfinite == "zero" else np.nan
        if nonfinite == "zero" and case.blocks == "params":  # the update is zero, not the parameter
            expected = float(PARAMS["conv"]["bias"][1])
        for x in jax.tree.leaves(hit):
            np.testing.assert_array_equal(x, np.full(x.shape, expected, x.dtype))
        if nonfinite == "zero":
            chex.assert_tree_all_finite(clipped)
        if case.blocks == "whole":
            assert same_bits(_thresholds(before), _thresholds(after))
        assert max(int(m.nonfinite) for m in jaxclip.metrics(before).values()) == 0
        assert max(int(m.nonfinite) for m in jaxclip.metrics(after).values()) == 1


@METHOD
def test_contract_state_is_final_from_init(case):
    tx = case.make()
    init = tx.init(PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(init, jax.eval_shape(tx.init, PARAMS))
    assert all(isinstance(x, jax.Array) and not x.weak_type for x in jax.tree.leaves(init))
    compiled = step(case).lower(tree(), init, PARAMS).compile()
    gradients = [tree(seed=seed) for seed in range(3)]
    state, outs = init, []
    for gradient in gradients:  # what is compiled takes no state of other shapes or dtypes
        out, state = compiled(gradient, state, PARAMS)
        outs.append(out)
    assert jax.tree.structure(state) == jax.tree.structure(init)
    final, scanned = jax.lax.scan(
        lambda s, g: tx.update(g, s, PARAMS)[::-1], init, jax.tree.map(_stack, *gradients)
    )
    close(final, state)
    close(scanned, jax.tree.map(_stack, *outs))


@METHOD
def test_contract_vmap_and_gradient_through_it(case):
    tx = case.make()
    state = tx.init(PARAMS)
    gradients = [tree(size=size) for size in (1e-3, 1.0, 1e3)]
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)

    def total(gradient):
        out = tx.update(gradient, state, PARAMS)[0]
        return sum(jnp.sum(x) for x in jax.tree.leaves(out)), out

    (_, outs), slopes = jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))(
        jax.tree.map(_stack, *gradients, zeros)
    )
    for k, gradient in enumerate(gradients):
        close(jax.tree.map(lambda x, k=k: x[k], outs), step(case)(gradient, state, PARAMS)[0])
    chex.assert_tree_all_finite(slopes)
    if case.slope_at_zero:
        close(jax.tree.map(lambda x: x[3], slopes), jax.tree.map(jnp.ones_like, zeros))


@METHOD
def test_contract_what_has_no_norm_passes_through(case):
    tx = case.make()
    frozen = jax.grad(lambda i: jnp.float32(1), allow_int=True)(2)
    others = {"count": jnp.arange(3), "none": None, "masked": optax.MaskedNode()}
    others |= {"empty": jnp.zeros((0, 4)), "frozen": frozen}
    key = jax.random.key(3)
    params = PARAMS | others | {"frozen": jnp.array(2), "key": key}
    state = tx.init(params)
    out, _ = jax.jit(lambda g: tx.update(g | others | {"key": key}, state, params))(tree())
    assert out.pop("key") == key
    assert out.pop("frozen").dtype == jax.dtypes.float0
    assert same_bits({key: out.pop(key) for key in others if key != "frozen"}, _without(others))
    close(out, step(case)(tree(), tx.init(PARAMS), PARAMS)[0])


@METHOD
def test_contract_works_inside_optax(case):
    """As a part of everything in Optax that takes transformations apart or puts them together."""
    tx, gradient = case.make(), tree()
    labels = {"conv": "a", "temperature": "b"}
    mask = {"conv": True, "temperature": False}
    together = {
        "chain": optax.chain(tx, optax.sgd(0.1)),
        "named_chain": optax.named_chain(("clip", tx), ("sgd", optax.sgd(0.1))),
        "masked": optax.masked(tx, mask),
        "partition": optax.partition({"a": tx, "b": optax.sgd(1.0)}, labels),
        "MultiSteps": optax.MultiSteps(tx, 2),
        "apply_if_finite": optax.apply_if_finite(tx, 2),
    }
    if case.injectable:
        together["inject"] = optax.inject_hyperparams(case.method, case.static)(**case.args)
    alone, after = step(case)(gradient, tx.init(PARAMS), PARAMS)
    for key, wrapped in together.items():
        init = jax.eval_shape(wrapped.init, PARAMS)
        extra = {} if key == "apply_if_finite" else {"unknown": "argument"}
        update = functools.partial(wrapped.update, **extra)
        with jax.numpy_dtype_promotion("standard"):  # MultiSteps promotes
            _, state = jax.eval_shape(update, gradient, init, PARAMS)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, init)
        assert jaxclip.metrics(state).keys() == jaxclip.metrics(after).keys()
        if key in ("masked", "inject"):
            out, state = jax.jit(update)(gradient, wrapped.init(PARAMS), PARAMS)
            expected = alone if key == "inject" else {"temperature": gradient["temperature"]}
            close({part: out[part] for part in expected}, expected)
            if key == "inject":
                close(jaxclip.metrics(state), jaxclip.metrics(after))
    fast = optax.LookaheadParams(PARAMS, PARAMS)
    ahead = optax.lookahead(optax.chain(tx, optax.sgd(0.1)), 2, 0.5)
    with jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(ahead.update, gradient, ahead.init(fast), fast)


@METHOD
def test_contract_takes_every_tree_of_the_frameworks(case):
    tx = case.make()
    for params, gradient in framework_trees():
        state = jax.eval_shape(tx.init, params)
        out, after = jax.eval_shape(tx.update, gradient, state, gradient)
        chex.assert_trees_all_equal_shapes_and_dtypes(out, gradient)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            jax.tree.leaves(after), jax.tree.leaves(state)
        )


@METHOD
def test_contract_metrics_are_true_scalars(case):
    gradient = tree(size=10.0)
    clipped, state = step(case)(gradient, case.make().init(PARAMS), PARAMS)
    found = jaxclip.metrics(state)
    assert found
    for metrics in found.values():
        assert all(x.shape == () for x in jax.tree.leaves(metrics))
        assert 0 <= float(metrics.clipped) <= 1
        assert float(metrics.clip_rate) in (0.0, 1.0)
        assert float(metrics.clipped_norm) <= float(metrics.norm) * (1 + 1e-6)
    if case.blocks not in (None, "params") and len(found) == 1:
        norms, after = true_norms(case.blocks, gradient), true_norms(case.blocks, clipped)
        np.testing.assert_allclose(metrics.norm, np.sqrt(np.mean(norms**2)), rtol=1e-6)
        np.testing.assert_allclose(metrics.clipped_norm, np.sqrt(np.mean(after**2)), rtol=1e-6)
        np.testing.assert_allclose(metrics.clipped, np.mean(after < norms * (1 - 1e-6)), rtol=1e-6)
        if case.limit is not None:
            np.testing.assert_allclose(metrics.limit, case.limit, rtol=1e-6)


@METHOD
def test_contract_arrays_on_explicit_axes(case):
    """An update keeps their layout, and a state its types; `test_sharding.py` has the values."""
    tx = case.make()
    kernel, bias = P(None, "data", "model"), P("model")
    specs = {"conv": {"kernel": kernel, "bias": bias}, "temperature": P()}
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)
    params, gradient = jax.device_put((PARAMS, tree()), (layout, layout))
    early = tx.init(params)  # also where no mesh is in context, as Optax' own
    with jax.set_mesh(mesh):
        state = tx.init(params)
        out, after = jax.eval_shape(tx.update, gradient, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(early, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    for x, g in zip(jax.tree.leaves(out), jax.tree.leaves(gradient), strict=True):
        assert x.sharding == jax.typeof(g).sharding


SPECS = {
    "conv": {"kernel": P(None, "data", "model"), "bias": P("model")},
    "temperature": P(),
}


def mapped(update, state, check_vma: bool = True):
    """An update within `shard_map`, of a state as every device can return it."""
    by_shape = {PARAMS["conv"][part].shape: SPECS["conv"][part] for part in SPECS["conv"]}
    state_specs = jax.tree.map(lambda x: by_shape.get(x.shape, P()), state)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    return jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(SPECS, state_specs, SPECS),
        out_specs=(SPECS, state_specs),
        check_vma=check_vma,
    )


@METHOD
def test_contract_metrics_by_name(case):
    """With `detail="blocks"` every leaf, or block, has its norm, in a state that is as final."""
    tx, gradient = case.make(detail="blocks"), tree(size=10.0)
    state = tx.init(PARAMS)
    _, after = jax.jit(tx.update)(gradient, state, PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert same_bits(optax.tree.map_params(tx, lambda x: x, after), after)
    [metrics] = jaxclip.metrics(after).values()
    logged = jaxclip.log(after)
    leaves = ["matrix", "vector"] if case.blocks == "group" else jaxclip.names(PARAMS)
    by_name = {k: [v for n, v in logged.items() if n.startswith(f"clip/norm/{k}")] for k in leaves}
    largest = max(by_name, key=lambda name: np.mean(np.square(by_name[name])))
    assert leaves[metrics.largest] == largest
    if case.blocks in ("whole", "leaf", "entry", "rms", "unit", "group"):
        norms = {"whole": "leaf", "entry": "rms"}.get(case.blocks, case.blocks)
        every = [value for values in by_name.values() for value in values]
        np.testing.assert_allclose(every, true_norms(norms, gradient), rtol=1e-6)


@METHOD
def test_contract_leaves_spread_over_a_map(case):
    """Of shards an update is that of the whole, and the state the same on every device."""
    tx = case.make(axis_name=SPECS)
    state = tx.init(PARAMS)
    if not case.scalar_collectives:  # a decomposition is of whole matrices
        with pytest.raises(ValueError, match="is spread over the mapped axis 'model'"):
            jax.eval_shape(mapped(tx.update, state), tree(), state, PARAMS)
        return
    jax.eval_shape(mapped(tx.update, state, check_vma=False), tree(), state, PARAMS)
    update = jax.jit(mapped(tx.update, state))
    alone = case.make().init(PARAMS)
    for size in (1e-2, 10.0):
        out, state = update(tree(size=size), state, PARAMS)
        expected, alone = step(case)(tree(size=size), alone, PARAMS)
        close((out, state), (expected, alone), rtol=2e-6)
    bad = tree()
    bad["conv"]["bias"] = bad["conv"]["bias"].at[5].set(np.nan)
    _, state = update(bad, state, PARAMS)
    assert max(int(m.nonfinite) for m in jaxclip.metrics(state).values()) == 1


@METHOD
def test_contract_measures_some_leaves_and_scales_some(case):
    """What is in neither mask might not be there; what is not measured goes with its group."""
    inside = {"conv": True, "temperature": False}
    both = case.make(measure_mask=lambda path: path.startswith("conv/"), apply_mask=inside)
    measured = case.make(measure_mask=inside)
    applied = case.make(apply_mask=lambda path: path != "temperature")
    gradient, alone = tree(size=10.0), case.make()

    def first(tx, updates):
        params = {part: PARAMS[part] for part in updates}
        return tx.update(updates, tx.init(params), params)

    @jax.jit
    def update(gradient):
        conv = {"conv": gradient["conv"]}
        whole = [first(tx, gradient) for tx in (both, measured, applied, alone)]
        return *whole, first(alone, conv)

    (out, state), (of_measured, _), (of_applied, _), everything, without = update(gradient)
    assert same_bits(out["temperature"], gradient["temperature"])
    close(out["conv"], without[0]["conv"])
    close(jaxclip.metrics(state), jaxclip.metrics(without[1]))
    close(of_measured["conv"], out["conv"])
    factor = out["conv"]["bias"][0] / gradient["conv"]["bias"][0]
    goes_with = case.blocks in ("whole", "group") and case.method is not jaxclip.adagc
    expected = gradient["temperature"] * (factor if goes_with else 1)
    np.testing.assert_allclose(of_measured["temperature"], expected, rtol=1e-6)
    assert same_bits(of_applied["temperature"], gradient["temperature"])
    if case.method is not jaxclip.adagc:  # of which a leaf that is not scaled is not measured
        close(of_applied["conv"], everything[0]["conv"])


STACKS = [case for case in METHODS if "axes" in inspect.signature(case.method).parameters]


@pytest.mark.parametrize("case", STACKS, ids=lambda case: case.name)
def test_contract_stacked_layers_are_those_beside_each_other(case):
    """As `scan` stacks them: norms, limits, memories and metrics are those of each layer."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4, 5), "bias": (3, 5)}

    def stacked(size):
        sizes = size * 4.0 ** np.arange(3)  # each layer has norms of its own
        return {
            key: jnp.asarray(
                rng.normal(size=shape) * sizes.reshape(3, *[1] * (len(shape) - 1)), jnp.float32
            )
            for key, shape in shapes.items()
        }

    def layers(tree):
        return [jax.tree.map(lambda x, k=k: x[k], tree) for k in range(3)]

    of_unit = (lambda path, x: (0, -1) if x.ndim > 2 else 0) if case.blocks == "unit" else 0
    together, apart = case.make(axes=of_unit), case.make()
    params = stacked(0.1)

    @jax.jit
    def update(gradient, state, states):
        whole = together.update(gradient, state, params)
        return whole, apart.update(layers(gradient), states, layers(params))

    state, states = together.init(params), apart.init(layers(params))
    for size in (1.0, 3.0):
        (out, state), (outs, states) = update(stacked(size), state, states)
        close(layers(out), outs)
        # The leaf with the largest norm has another number in another tree.
        seen, seen_apart = (
            jaxclip.metrics(one)["clip"]._replace(largest=0) for one in (state, states)
        )
        close(seen, seen_apart, rtol=2e-6)
    memories = zip(jax.tree.leaves(state.thresholds), _by_field(states.thresholds), strict=True)
    for stack, each in memories:
        close(stack, jnp.stack(each))


def _by_field(thresholds) -> list:
    """What is remembered of layers beside each other, the layers of a leaf together."""

    def is_layers(x):
        return isinstance(x, list) and len(x) == 3

    fields = [x for x in jax.tree.leaves(thresholds, is_leaf=is_layers) if is_layers(x)]
    return [each for field in fields for each in zip(*map(jax.tree.leaves, field), strict=True)]


@METHOD
def test_contract_says_what_it_was_not_told_of_a_map(case):
    """Under `shard_map` and `pmap`, where each device has a gradient of its own."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    gradients = jax.tree.map(lambda x: jnp.stack([x] * 8), tree())

    def on_each(gradient, **options):
        gradient = jax.tree.map(lambda x: x[0], gradient)
        tx = case.make(**options)
        first, final = tx.init(gradient), tx.update(gradient, tx.init(gradient), PARAMS)
        return jax.tree.map(lambda x: x[None], (*final, first))

    def over_devices(check_vma=True, **options):
        each = functools.partial(on_each, **options)
        spec = P("data")
        return jax.eval_shape(
            jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma),
            gradients,
        )

    with pytest.raises(ValueError, match=r"varies over .* Give `axis_name='data'`"):
        over_devices()
    for options in ({"axis_name": ()}, {"check_vma": False}, {"check_vma": False, "axis_name": ()}):
        out, after, first = over_devices(**options)
        chex.assert_trees_all_equal_shapes_and_dtypes(out, gradients)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, first)
    out = jax.eval_shape(
        jax.pmap(lambda g: on_each(jax.tree.map(lambda x: x[None], g))[0]), gradients
    )
    assert jax.tree.leaves(out)[0].shape[0] == 8


EXTREMES = (3e19, 1e38, 3e38, np.nan, np.inf, 0.0, 1e-38, 1e-40)


@functools.cache
def train() -> tuple[list[float], dict]:
    """Ordinary gradients, with a train of extreme ones at first, in the warm-up, and late."""
    sizes = [*EXTREMES, *[1.0] * 6, *EXTREMES, *[1.0] * 30, *EXTREMES, *[1.0] * 100]

    def gradient(seed, size):
        ordinary = tree(seed=seed)
        if size < 1:
            return jax.tree.map(lambda x: jnp.full_like(x, size), ordinary)
        if size != 1:
            ordinary["conv"]["bias"] = ordinary["conv"]["bias"].at[1].set(size)
        return ordinary

    return sizes, jax.tree.map(_stack, *[gradient(*one) for one in enumerate(sizes)])


def trained(case: Case):
    tx = case.make()

    @jax.jit
    def run(gradients, params):
        def one(state, gradient):
            out, state = tx.update(gradient, state, params)
            return state, (out, jaxclip.metrics(state))

        return jax.lax.scan(one, tx.init(params), gradients)

    return run


@METHOD
def test_contract_through_a_train_of_extremes(case):
    """Each step has the outcome of the table, and all is as before when the extremes are over."""
    sizes, gradients = train()
    run = trained(case)
    state, (outs, metrics) = run(gradients, PARAMS)
    for k, size in enumerate(sizes):
        out = jax.tree.map(lambda x, k=k: np.asarray(x[k]), outs)
        where = f"step {k}, {size}"
        if not np.isfinite(size):
            assert not np.isfinite(out["conv"]["bias"][1]), where
            continue
        if size == 3e38 and case.method is jaxclip.clip_weights_by_fan_in:
            continue  # twice that is beyond float32
        chex.assert_tree_all_finite(out)
        if case.blocks == "params" or case.limit is None:
            continue
        norms = true_norms(case.blocks, out)
        assert np.all(norms <= case.limit * (1 + 4 * np.finfo(np.float32).eps)), where
        if size > 1:  # clipped to the limit, not to zero
            assert np.max(norms) >= case.limit * (1 - 1e-5), where
        if size == 0 and case.method is not jaxclip.u_clip:  # which has carried the spike on
            assert not any(np.any(x) for x in jax.tree.leaves(out)), where
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(state))
    for name, seen in metrics.items():
        beyond = sizes.count(3e38) if case.method is jaxclip.clip_weights_by_fan_in else 0
        assert int(seen.nonfinite[-1]) == np.sum(~np.isfinite(sizes)) + beyond, name
    if case.recovers:
        last = jax.tree.map(lambda x: np.asarray(x[-5:]), outs)
        assert all(
            np.all(np.max(np.abs(x).reshape(5, -1), 1) > 1e-3) for x in jax.tree.leaves(last)
        )

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        "conv": {"kernel": P(None, None, "data", "model"), "bias": P(None, "model")},
        "temperature": P(),
    }
    layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)
    on_devices = run(
        jax.device_put(gradients, layout), jax.device_put(PARAMS, NamedSharding(mesh, P()))
    )
    for one, eight in zip(
        jax.tree.leaves((outs, metrics)), jax.tree.leaves(on_devices[1]), strict=True
    ):
        np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-6)


@METHOD
def test_contract_the_fields_of_a_state_can_be_donated(case):
    """No two of them are one array, of `init` or of an update, also inside of other states."""
    tx = case.make()
    inside = [optax.MultiSteps(tx, 2), optax.apply_if_finite(tx, 2), jaxclip.skip_nonfinite(tx)]
    state = tx.init(PARAMS)
    states = [state, tx.update(tree(), state, PARAMS)[1], *[t.init(PARAMS) for t in inside]]
    for one in states:
        buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(one) if x.size]
        assert len(set(buffers)) == len(buffers)


@METHOD
def test_contract_optax_finds_the_parameters_in_a_state(case):
    """By which states get the shardings of their parameters; also inside of a wrapper."""
    for tx in (case.make(), jaxclip.skip_nonfinite(case.make())):
        state = tx.init(PARAMS)
        assert same_bits(optax.tree.map_params(tx, lambda x: x, state), state)
        # What lies beside parameters is as large as they are, or one number each.
        names = jax.tree.map(lambda x: "leaf", PARAMS)
        marked = optax.tree.map_params(
            tx, lambda x, name: name, state, names, transform_non_params=lambda x: "other"
        )
        for mark in jax.tree.leaves(marked):
            assert mark in ("leaf", "other")


@METHOD
def test_contract_more_entries_than_an_int32_counts(case):
    """By shapes alone: 10^12 entries in one array, and 3 10^9 in a vector."""
    params = {
        "kernel": jax.ShapeDtypeStruct((10**6, 10**6), jnp.bfloat16),
        "bias": jax.ShapeDtypeStruct((3 * 10**9,), jnp.float32),
    }
    tx = case.make()
    state = jax.eval_shape(tx.init, params)
    out, after = jax.eval_shape(tx.update, params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@METHOD
def test_contract_hyperparameters_do_not_change_the_dtype_of_a_state(case):
    with jax.enable_x64(True):
        wide = {k: jnp.float64(v) for k, v in case.args.items() if isinstance(v, float)}
        tx = case.make(**wide)
        for dtype in (jnp.float32, jnp.bfloat16):
            params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), tree(seed=1))
            state = jax.eval_shape(tx.init, params)
            out, after = jax.eval_shape(tx.update, params, state, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(out, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
            floats = [
                x.dtype for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)
            ]
            assert floats and all(found == jnp.float32 for found in floats)


# A decomposition wants shapes that are numbers.
@pytest.mark.parametrize(
    "case", [case for case in METHODS if case.scalar_collectives], ids=lambda case: case.name
)
@pytest.mark.wide
def test_contract_symbolic_shapes_can_be_exported(case):
    m, n = jax.export.symbolic_shape("m, n")
    shapes = {"kernel": (m, n), "bias": (n,)}
    params = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in shapes.items()}
    tx = case.make()

    def update(gradient, params):
        return tx.update(gradient, tx.init(params), params)[0]

    exported = jax.export.export(jax.jit(update))(params, params)
    concrete = {"kernel": jnp.ones((2, 3)), "bias": jnp.full(3, 2.0)}
    close(exported.call(concrete, concrete), update(concrete, concrete))


def _stack(*arrays):
    return jnp.stack(arrays)


def _is_spec(x) -> bool:
    return isinstance(x, P)


def _without(others: dict) -> dict:
    return {key: value for key, value in others.items() if key != "frozen"}


def _thresholds(state) -> list:
    """The state of every threshold in an optimizer's state."""

    def is_clip(x):
        return hasattr(x, "thresholds")

    parts = jax.tree.leaves(state, is_leaf=is_clip)
    return jax.tree.leaves([part.thresholds for part in parts if is_clip(part)])
