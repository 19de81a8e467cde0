"""Gradients in parts: `optax.MultiSteps` over steps, `optax.microbatch` within one."""

import jax
import optax

import jaxclip
from tests.adoption import problem

PARTS = 4
CLIPS = (optax.clip_by_global_norm, jaxclip.clip_by_global_norm)


def train(tx, gradient):
    params = problem.arrays()
    state, update = tx.init(params), jax.jit(tx.update)
    for x, y in problem.BATCHES:
        updates, state = update(gradient(params, x, y), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_microbatches_are_clipped_when_they_are_one_gradient():
    mean = optax.microbatching.AccumulationType.MEAN
    size = problem.BATCH // PARTS
    parts = optax.microbatching.microbatch(jax.grad(problem.loss), (1, 2), size, mean)
    found, state = train(optax.chain(jaxclip.clip_by_global_norm(0.5), optax.sgd(0.1)), parts)
    whole = jax.grad(problem.loss)
    wanted, _ = train(optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)), whole)
    problem.same(found, wanted, rtol=1e-5)
    assert jaxclip.metrics(state)["clip"].clip_rate > 0


def test_multi_steps_clip_the_mean_or_every_part():
    for place in ("mean", "part"):
        runs = []
        for clip in CLIPS:
            if place == "mean":
                tx = optax.MultiSteps(optax.chain(clip(0.3), optax.sgd(0.1)), 2)
            else:
                tx = optax.chain(
                    clip(0.3), optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
                )
            runs.append(train(tx, jax.grad(problem.loss))[0])
        problem.same(*runs)
