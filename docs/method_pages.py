"""Writes a page for every method, from the code: `python docs/method_pages.py`."""

import inspect
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import table

import jaxclip

FOLDER = Path(__file__).parent / "methods"
QUIET, AFTER = 500, 5000  # steps
WEIGHTS = ("clip_weights", "clip_weights_by_fan_in", "clippy")  # limits are relative to parameters
LIMIT = 2.0  # where one is asked for: twice the usual norm

BEHAVIOR = """## On trains of norms

A block whose norm is about 1 (log-normal, deviation 0.1) for 500 steps, by the defaults of the
method; a limit that has to be given is {limit:g}.

| | |
|---|---|
| of these 500 steps, clipped | {quiet:.0f} % |
| a spike of 1000: norm after the clip | {spike:.2g} |
| limit after the spike, divided by that before | {memory} |
| a lasting rise to 10: steps until nine tenths of the norm are let through | {rise} |
"""


class Behavior(NamedTuple):
    """What a method does to trains of norms.

    Attributes:
      quiet: the share of quiet steps that it clips.
      spike: the norm that a spike of 1000 has after the clip.
      memory: the limit after the spike, divided by the limit before.
      rise: how many steps after a lasting rise to 10 until the next 100 keep nine tenths of their
        mean norm; `AFTER` if that never happens.
    """

    quiet: float
    spike: float
    memory: float
    rise: int


def behavior(name: str) -> Behavior:
    """Runs a method over the trains of norms."""
    quiet = np.exp(np.random.default_rng(0).normal(0, 0.1, QUIET + AFTER))
    spike, rise = quiet.copy(), quiet.copy()
    spike[QUIET] = 1000
    rise[QUIET:] *= 10
    before, limits, clipped = run(name, spike)
    after, _, _ = run(name, rise)
    kept, whole = (np.convolve(x[QUIET:], np.ones(100), "valid") for x in (after, rise))
    free = np.flatnonzero(kept >= 0.9 * whole)
    return Behavior(
        quiet=float(clipped[:QUIET].mean()),
        spike=float(before[QUIET]),
        memory=float(limits[QUIET + 1] / limits[QUIET]),
        rise=int(free[0]) if len(free) else AFTER,
    )


def run(name: str, norms: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the norms after the clip, the limits, and the shares clipped, of every step."""
    tx = make(name)
    params = {"w": jnp.ones((1, 1))}

    def step(state: optax.OptState, norm: jax.Array) -> tuple:
        updates, state = tx.update({"w": norm[None, None]}, state, params)
        [metrics] = jaxclip.metrics(state).values()
        return state, (jnp.abs(updates["w"][0, 0]), metrics.limit, metrics.clipped)

    _, series = jax.jit(lambda x: jax.lax.scan(step, tx.init(params), x))(
        jnp.asarray(norms, jnp.float32)
    )
    return tuple(np.asarray(x, np.float64) for x in series)


def make(name: str) -> optax.GradientTransformationExtraArgs:
    """Returns a method by its defaults, with a limit of `LIMIT` where it asks for one."""
    if name == "clip_by_group_norm":
        return jaxclip.clip_by_group_norm({"w": "a"}, {"a": LIMIT})
    method = jaxclip.named()[name]
    first = next(iter(inspect.signature(inspect.unwrap(method)).parameters.values()))
    return method(LIMIT) if first.default is first.empty else method()


def page(name: str) -> str:
    """Returns the page of a method."""
    _, measure, threshold, shrink, state, _, held_by = table.row(name)
    lines = [
        f"# {name}",
        f"![Norm and limit of {name} over 300 steps of a deep MLP on MNIST](../figures/{name}.svg)",
        f"Measure: {measure}. Threshold: {threshold}. Shrink: {shrink}. Its state for a kernel "
        f"`[64, 32]` and a bias `[32]` holds {state} numbers beside the step and the metrics. "
        f"Held to its source by {held_by}.",
        f"::: jaxclip.{name}\n    options:\n      heading_level: 2",
    ]
    if name not in WEIGHTS:
        found = behavior(name)
        memory = "no limit" if np.isnan(found.memory) else f"{found.memory:.2g}"
        rise = f"more than {AFTER}" if found.rise == AFTER else str(found.rise)
        lines.append(
            BEHAVIOR.format(
                limit=LIMIT, quiet=100 * found.quiet, spike=found.spike, memory=memory, rise=rise
            ).rstrip()
        )
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sorted(jaxclip.named()):
        (FOLDER / f"{name}.md").write_text(page(name))
