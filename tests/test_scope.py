"""What a clip is told about the leaves: mapped axes, by name, by `PartitionSpec`, by tree."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.helpers import close, framework_trees, same_bits

KERNEL = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def over(f, *specs, out, check_vma=True, **axes):
    axes = axes or {"data": 2, "model": 4}
    return jax.jit(
        jax.shard_map(f, mesh=mesh(**axes), in_specs=specs, out_specs=out, check_vma=check_vma)
    )


def clip(tx, gradient):
    return tx.update(gradient, tx.init(gradient), gradient)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    "axis_name", [("data", "model"), P("data", "model"), [P("data", "model")], [("model", "data")]]
)
def test_scope_takes_names_specs_and_trees_of_both(axis_name, check_vma):
    tx = jaxclip.clip_by_global_norm(0.5, axis_name=axis_name)
    spec = [P("data", "model")]
    out, state = over(functools.partial(clip, tx), spec, out=(spec, P()), check_vma=check_vma)(
        [KERNEL]
    )
    close((out, state), clip(jaxclip.clip_by_global_norm(0.5), [KERNEL]))


@pytest.mark.parametrize("check_vma", [True, False])
def test_scope_tells_the_leaves_of_a_tuple_apart(check_vma):
    """A tuple of names is for all leaves, one that has tuples in it is a tree."""
    tx = jaxclip.clip_by_leaf_norm(0.5, axis_name=(("data", "model"), ("model",), ()))
    tree, specs = (KERNEL, KERNEL[0], jnp.float32(3)), (P("data", "model"), P("model"), P())
    run = over(functools.partial(clip, tx), specs, out=(specs, P()), check_vma=check_vma)
    close(run(tree), clip(jaxclip.clip_by_leaf_norm(0.5), tree))


def test_scope_knows_which_axis_of_an_array_is_spread():
    """Units of a kernel that is cut along its inputs are summed; along its outputs they are not."""
    kernel = jnp.tile(KERNEL, (2, 1))
    cases = [
        (jaxclip.clip_by_unit_norm, P("model")),
        (jaxclip.clip_by_unit_norm, P("data", "model")),
        (jaxclip.adaptive_grad_clip, P(None, "model")),
        (jaxclip.adaptive_grad_clip, P(("model", "data"))),  # a row a device, which is no vector
    ]
    for make, spec in cases:
        run = over(functools.partial(clip, make(0.5, axis_name=spec)), spec, out=(spec, P()))
        close(run(kernel), clip(make(0.5), kernel))
    for make in (jaxclip.clip_by_unit_norm, jaxclip.adaptive_grad_clip):
        tx = make(0.5, axis_name="data")
        with pytest.raises(ValueError, match=r"which axis of the array.*`PartitionSpec`"):
            over(functools.partial(clip, tx), P("data"), out=P("data"))(KERNEL)


def test_scope_refuses_specs_and_trees_that_do_not_fit():
    def run(**options):
        return clip(jaxclip.clip_by_global_norm(0.5, **options), {"w": KERNEL, "b": KERNEL[0]})

    with pytest.raises(ValueError, match=r"\['b'\] has shape \(8,\).* of more axes"):
        run(axis_name=P(None, "model"))
    with pytest.raises(ValueError, match=r"`axis_name` has the structure.* no prefix"):
        run(axis_name={"w": "data"})
    with pytest.raises(NameError, match="data"):
        run(axis_name="data")
    with pytest.raises(TypeError, match="a function of your own"):
        jaxclip.clip(lambda g: (g, lambda f: f), 1.0, axis_name="data")


def test_scope_of_what_is_replicated_counts_it_once_where_it_is_tracked():
    """A name for all leaves is enough under `shard_map`, which tracks what varies."""
    tx = jaxclip.clip_by_global_norm(0.5, axis_name=("data", "model"))
    tree, specs = [KERNEL, KERNEL[0], KERNEL[:, 0]], [P("data", "model"), P("model"), P()]
    out = over(functools.partial(clip, tx), specs, out=(specs, P()))(tree)
    close(out, clip(jaxclip.clip_by_global_norm(0.5), tree))


def test_scope_one_collective_for_all_kinds_of_sharding():
    """Beside the branch that only extreme gradients take, and of no more than a number a leaf."""
    tree = [KERNEL, KERNEL[0], KERNEL[:, 0], KERNEL[1]]
    specs = [P("data", "model"), P("model"), P(), P("data")]
    # The metrics tell which leaf was the largest.
    cases = {jaxclip.clip_by_global_norm: "f32[4]", jaxclip.clip_by_leaf_norm: "f32[3]"}
    for make, shape in cases.items():
        tx = make(0.5, axis_name=specs)
        run = over(functools.partial(clip, tx), specs, out=(specs, P()))
        text = run.lower(tree).compile().as_text()
        always = text[text.index("ENTRY") :]
        [reduce] = [line for line in always.splitlines() if " all-reduce(" in line]
        assert reduce.split(" = ")[1].startswith(f"{shape}"), reduce
        for other in ("all-gather", "all-to-all", "collective-permute"):
            assert other not in text
    alone = over(lambda tree: jaxclip.global_norm(tree, axis_name=specs), specs, out=P())
    assert re.search(r"= f32\[\] all-reduce\(", alone.lower(tree).compile().as_text())


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("bad", [np.nan, 1e30])
def test_scope_devices_do_not_wait_for_each_other_in_the_branch(bad, check_vma):
    """One device alone has what is extreme, in units of its own beside a leaf that is summed."""
    specs = {"kernel": P(None, "model"), "bias": P("model")}
    tree = {"kernel": KERNEL.at[2, 3].set(bad), "bias": KERNEL[0]}
    for make in (jaxclip.clip_by_unit_norm, jaxclip.clip_by_leaf_norm):
        options = {"axes": None} if make is jaxclip.clip_by_unit_norm else {}
        run = over(
            functools.partial(clip, make(0.5, axis_name=specs, **options)),
            specs,
            out=(specs, P()),
            check_vma=check_vma,
        )
        close(run(tree), clip(make(0.5, **options), tree))


def test_scope_under_vmap_with_an_axis_name():
    tx = jaxclip.clip_by_global_norm(0.5, axis_name="i")
    state = tx.init(KERNEL[0])
    for size in (1.0, 1e30):
        out, states = jax.jit(
            jax.vmap(lambda g: tx.update(g, state), axis_name="i"), out_shardings=None
        )(KERNEL * size)
        whole = clip(jaxclip.clip_by_global_norm(0.5), KERNEL * size)
        close(out, whole[0])
        close(jax.tree.map(lambda x: x[0], states), whole[1])


def test_scope_types_of_a_state_are_final_from_init_within_a_map():
    """So that a scan over steps may carry it."""
    for make in (jaxclip.spam_clip, jaxclip.clip_by_norm_ratio, jaxclip.zclip):
        kwargs = {"ratio": 0.5} if make is jaxclip.clip_by_norm_ratio else {}
        tx = make(axis_name=P("data", "model"), **kwargs)

        def steps(gradient, tx=tx):
            def one(state, _):
                out, state = tx.update(gradient, state)
                return state, out

            return jax.lax.scan(one, tx.init(gradient), length=3)[1]

        run = over(steps, P("data", "model"), out=P(None, "data", "model"))
        assert run(KERNEL).shape == (3, 4, 8)


@pytest.mark.parametrize("way", ["tracked", "untracked", "pmap"])
def test_scope_devices_skip_a_step_together(way):
    rule = optax.sgd(1.0, momentum=0.9)
    gradients = jnp.ones((8, 4)).at[3, 1].set(jnp.nan)
    losses = jnp.ones(8)
    for make in (jaxclip.skip_nonfinite, jaxclip.skip_on_spike):
        tx = make(rule, axis_name="data")

        def one(gradient, loss, tx=tx):
            out, state = tx.update(gradient, tx.init(gradient), value=loss[0])
            return out, state.metrics

        if way == "pmap":
            run = jax.pmap(one, axis_name="data")
            loss = losses[:, None]
        else:
            spec = P("data")
            run = over(one, spec, spec, out=(spec, P()), check_vma=way == "tracked", data=8)
            loss = losses
        out, metrics = run(gradients, loss)
        np.testing.assert_array_equal(out, np.zeros_like(gradients))
        assert np.all(np.asarray(metrics[make.__name__].nonfinite) == 1)
        out, metrics = run(jnp.ones((8, 4)), loss)
        np.testing.assert_array_equal(out, -np.ones_like(gradients))
        np.testing.assert_allclose(metrics[make.__name__].norm, np.sqrt(32), rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_scope_devices_agree_on_a_loss(check_vma):
    tx = jaxclip.skip_on_spike(optax.sgd(1.0), axis_name="data")
    state = tx.init(jnp.ones(8))

    def one(gradient, loss):
        return tx.update(gradient, state, value=loss[0])

    run = over(one, P("data"), P("data"), out=(P("data"), P()), check_vma=check_vma, data=8)
    losses = jnp.arange(8.0)
    out, after = run(jnp.ones(8), losses)
    np.testing.assert_array_equal(after.losses.values[0], np.mean(losses))
    out, after = run(jnp.ones(8), losses.at[2].set(jnp.nan))
    np.testing.assert_array_equal(out, np.zeros(8))
    assert same_bits(after.losses, state.losses)


def test_scope_asks_what_a_loss_that_varies_means():
    tx = jaxclip.skip_on_spike(optax.sgd(1.0))
    gradient = jnp.ones(4)  # the same on all devices, as after `psum`

    def one(loss):
        return tx.update(gradient, tx.init(gradient), value=loss[0])[0]

    with pytest.raises(ValueError, match="`value` varies over the mapped axis 'data'"):
        over(one, P("data"), out=P(), data=8)(jnp.ones(8))


@pytest.mark.parametrize("wrapper", [jaxclip.skip_nonfinite, jaxclip.skip_on_spike])
def test_scope_wrappers_say_what_they_were_not_told(wrapper):
    def one(gradient, **options):
        tx = wrapper(optax.sgd(1.0), **options)
        return tx.update(gradient, tx.init(gradient))[0]

    with pytest.raises(ValueError, match="`axis_name='data'`"):
        over(one, P("data"), out=P("data"), data=8)(jnp.ones(8))
    local = functools.partial(one, axis_name=())
    out = over(local, P("data"), out=P("data"), data=8)(jnp.ones(8).at[3].set(jnp.nan))
    np.testing.assert_array_equal(out, -np.ones(8) * (np.arange(8) != 3))


def test_scope_global_norm_of_shards():
    def norm(x, **options):
        return jaxclip.global_norm(x, **options)

    run = over(functools.partial(norm, axis_name=("data", "model")), P("data", "model"), out=P())
    np.testing.assert_allclose(run(KERNEL), np.linalg.norm(KERNEL), rtol=1e-6)
    with pytest.raises(ValueError, match="axis_name"):
        over(norm, P("data", "model"), out=P())(KERNEL)


def test_scope_does_not_change_an_update_outside_of_a_map():
    tree = {"w": KERNEL, "b": KERNEL[0]}
    local = clip(jaxclip.clip_by_global_norm(0.5, axis_name=()), tree)
    assert same_bits(local, clip(jaxclip.clip_by_global_norm(0.5), tree))


def test_scope_masks_say_what_they_do_not_understand():
    tree = {"w": KERNEL, "b": KERNEL[0]}
    for mask in ({"w": 1, "b": True}, lambda path: None):
        with pytest.raises(TypeError, match=r"`measure_mask` is .* True or False"):
            clip(jaxclip.clip_by_global_norm(0.5, measure_mask=mask), tree)
    with pytest.raises(ValueError, match=r"`apply_mask` has the structure.* no prefix"):
        clip(jaxclip.clip_by_global_norm(0.5, apply_mask={"w": True}), tree)
    with pytest.raises(TypeError, match="a function of your own"):
        jaxclip.clip(lambda g: (g, lambda f: f), 1.0, apply_mask=False)


def test_scope_masks_by_path_in_every_tree():
    """The path is that of the leaf at `init` and at every update, in Flax NNX as well."""
    for params, gradient in framework_trees():
        seen: list[str] = []
        tx = jaxclip.clip_by_leaf_norm(
            0.5, measure_mask=lambda path, seen=seen: not seen.append(path)
        )
        state = jax.eval_shape(tx.init, params)
        at_init = sorted(set(seen))
        seen.clear()
        jax.eval_shape(tx.update, gradient, state)
        assert sorted(set(seen)) == at_init
        assert all(isinstance(path, str) and "[" not in path for path in seen)


def test_scope_masks_of_nothing_leave_everything_alone():
    for make in (jaxclip.clip_by_global_norm, jaxclip.clip_by_leaf_norm, jaxclip.clip_by_value):
        for masks in ({"measure_mask": False}, {"apply_mask": lambda path: False}):
            out, state = clip(make(0.5, **masks), [KERNEL])
            assert same_bits(out, [KERNEL])
            assert jaxclip.metrics(state)["clip"].nonfinite == 0


def test_scope_masks_and_a_tree_of_limits():
    tx = jaxclip.clip_by_leaf_norm({"w": 0.5, "b": 2.0}, measure_mask={"w": True, "b": False})
    tree = {"w": KERNEL, "b": KERNEL[0] * 100}
    out, state = clip(tx, tree)
    assert same_bits(out["b"], tree["b"])
    np.testing.assert_allclose(jaxclip.global_norm(out["w"]), 0.5, rtol=1e-6)
    np.testing.assert_allclose(jaxclip.metrics(state)["clip"].limit, 0.5)


def test_scope_a_nan_outside_of_the_mask_does_not_stop_the_others():
    """It is not measured, and so not hidden by the norm of the others either."""
    tree = {"w": KERNEL, "router": KERNEL[0].at[0].set(jnp.nan)}
    tx = jaxclip.clip_by_global_norm(0.5, measure_mask=lambda path: "router" not in path)
    out, _ = clip(tx, tree)
    np.testing.assert_allclose(jaxclip.global_norm(out["w"]), 0.5, rtol=1e-6)
    assert np.isnan(out["router"][0]) and np.all(np.isfinite(out["router"][1:]))


def test_scope_agc_leaves_the_last_layer_alone_by_one_argument():
    tree = {"body": KERNEL, "head": KERNEL}
    tx = jaxclip.adaptive_grad_clip(0.01, apply_mask=lambda path: "head" not in path)
    out, _ = clip(tx, tree)
    assert same_bits(out["head"], KERNEL)
    close(out["body"], clip(jaxclip.adaptive_grad_clip(0.01), KERNEL)[0])


@pytest.mark.parametrize(
    "method",
    [
        functools.partial(jaxclip.clip_by_leaf_norm, 0.5),
        *[
            pytest.param(method, marks=pytest.mark.wide)
            for method in (
                functools.partial(jaxclip.clip_by_norm_ratio, 0.5),
                functools.partial(jaxclip.adagc, warmup=1),
                functools.partial(jaxclip.clip_singular_values, 0.5),
                functools.partial(jaxclip.clip_singular_values, 0.5, method="newton_schulz"),
            )
        ],
    ],
    ids=["leaf_norm", "norm_ratio", "adagc", "svd", "newton_schulz"],
)
def test_scope_stages_of_a_pipeline_and_experts_on_devices_of_their_own(method):
    """Stacked along an axis that is spread: each device has blocks of its own."""
    stack = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 8)), jnp.float32)
    stack *= jnp.arange(1.0, 5).reshape(4, 1, 1)
    spec, whole = P("model"), method(axes=0)
    tx = method(axes=0, axis_name=spec)
    state = whole.init(stack)
    specs = jax.tree.map(lambda x: spec if x.ndim else P(), state)
    run = over(tx.update, spec, specs, out=(spec, specs))
    own = state
    for factor in (1, 2):
        out, own = run(factor * stack, own)
        expected, state = whole.update(factor * stack, state)
        close((out, own), (expected, state), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [3, {"w": 1.5}, [("d", 2)]])
def test_scope_refuses_what_names_no_axis(names):
    with pytest.raises(TypeError, match="names no mapped axis"):
        jaxclip.clip_by_global_norm(1.0, axis_name=names)
