"""MaxText: boxed Linen parameters, shardings by logical names, the clip outside of `tx`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.adoption import problem

RULES = (("embed", "fsdp"), ("mlp", "tensor"))
SCALES = "_overwrite_with_gradient"  # the scales of float8, whose gradients are their next values


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        boxed = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        x = jnp.tanh(nn.Dense(problem.HIDDEN, use_bias=False, kernel_init=boxed)(x))
        boxed = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("mlp", None))
        return nn.Dense(1, use_bias=False, kernel_init=boxed)(x)


APPLY = Network().apply


def loss(params, x, y):
    return jnp.mean((APPLY({"params": params}, x) - y) ** 2)


def first(tx):
    params = Network().init(jax.random.key(0), problem.X[0])["params"]
    return TrainState.create(apply_fn=APPLY, params=params, tx=tx)


def clipped_by_optax(grads, state):
    grads, _ = optax.clip_by_global_norm(0.5).update(grads, optax.EmptyState())
    return grads, optax.tree.norm(grads)


def clipped_by_jaxclip(grads, state):
    norm = jaxclip.global_norm(grads)  # once: for the clip and for the log
    return jaxclip.scale_to_norm(grads, norm, 0.5), jnp.minimum(norm, 0.5)


def train(clip, tx):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    logical = nn.get_partition_spec(jax.eval_shape(functools.partial(first, tx)))
    layout = nn.logical_to_mesh_sharding(logical, mesh, RULES)
    state = jax.jit(lambda: nn.unbox(first(tx)), out_shardings=layout)()

    @functools.partial(jax.jit, out_shardings=(layout, None), donate_argnums=0)
    def step(state, scales, x, y):
        grads = dict(jax.grad(loss)(state.params, x, y), **{SCALES: scales})
        scales = grads.pop(SCALES)
        grads, norm = clip(grads, state)
        return state.apply_gradients(grads=grads), norm

    norms = []
    for x, y in problem.BATCHES:
        state, norm = step(state, jnp.ones(2, jnp.float8_e4m3fn), x, y)
        norms.append(float(norm))
    return layout, state, norms


def test_maxtext_the_clip_outside_of_tx():
    _, wanted, expected = train(clipped_by_optax, optax.adamw(0.1))
    _, found, norms = train(clipped_by_jaxclip, optax.adamw(0.1))
    problem.same(found.params, wanted.params)
    problem.same(norms, expected)
    assert max(norms) <= 0.5 * (1 + 1e-6)


def test_maxtext_the_clip_inside_of_tx_has_a_layout_for_its_state():
    ours = optax.chain(jaxclip.spam_clip(5.0, warmup=2), optax.adamw(0.1))
    layout, state, _ = train(lambda grads, state: (grads, 0.0), ours)
    kernel = state.params["Dense_0"]["kernel"]
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert len(moments) == 3  # Adam's two, and the one of SPAM
    for x in moments:
        assert x.sharding.is_equivalent_to(kernel.sharding, 2)
        assert x.sharding.spec == P("fsdp", "tensor")
    for x in jax.tree.leaves(state.opt_state):
        assert x.ndim or x.sharding.is_fully_replicated
    assert jax.tree.structure(layout.opt_state) == jax.tree.structure(state.opt_state)
