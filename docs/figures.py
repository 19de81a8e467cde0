"""Draws the figures of the docs: `python docs/figures.py [NAME ...]`, some minutes for all.

A figure of a method is 300 steps of the deep MLP of `mnist_deep`, trained by that method: the norm
that it measured, its limit, and the steps that it clipped. The figures of shrinks and measures show
one cloud of gradients before and after the clip.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxclip
from experiments.pages.figures import COLORS, STYLE, logarithmic
from experiments.studies.knobs import KNOBS, make_clip
from experiments.studies.settings import DEEP
from experiments.training import train
from experiments.training.config import trial
from jaxclip import measures, shrinks

FOLDER = Path(__file__).parent / "figures"
STEPS, SEED = 300, 0
LINES = "#7f7f7f"  # seen on a light page and on a dark one
BLUE, RED = COLORS[0], COLORS[1]


def main(names: list[str]) -> None:
    """Draws the named figures, or all of them."""
    drawings: dict[str, Callable[[], Figure]] = {
        **{name: functools.partial(method_figure, name) for name in sorted(jaxclip.named())},
        "shrinks": shrink_figure,
        "measures": measure_figure,
    }
    FOLDER.mkdir(exist_ok=True)
    for name in names or drawings:
        with mpl.rc_context({**STYLE, "text.color": LINES, "axes.labelcolor": LINES,
                             "axes.edgecolor": LINES, "xtick.color": LINES,
                             "ytick.color": LINES}):  # fmt: skip
            drawings[name]().savefig(
                FOLDER / f"{name}.svg",
                transparent=True,
                metadata={"Date": None, "Creator": None},
            )


def method_figure(name: str) -> Figure:
    """Returns norm and limit of a training over its steps, and the steps that were clipped."""
    history = run(name)
    norm, limit, clipped = (np.ravel(x) for x in (history.norm, history.limit, history.clipped))
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(len(norm))
    axes.plot(steps, norm, color=BLUE, linewidth=1, label="norm")
    axes.plot(steps, np.where(np.isfinite(limit), limit, np.nan), color=RED, linewidth=1.2,
              label="limit")  # fmt: skip
    acted = clipped > 0
    axes.plot(steps[acted], norm[acted], ".", color=RED, markersize=3, label="clipped")
    axes.set(xlabel="step")
    logarithmic(axes, "y")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    share = 100 * clipped.mean()
    axes.set_title(f"{name}: {share:.0f} % clipped", loc="left", fontsize=10)
    return figure


def run(name: str) -> Any:
    """Returns the history of 300 steps of the deep MLP with a method."""
    knob = KNOBS[name]
    number = knob.scale(DEEP) * knob.usual
    config = DEEP.config(lambda limit: make_clip(name, limit), clip_last=knob.clip_last, epochs=1)
    data = DEEP.data({})
    few = data._replace(train=jax.tree.map(lambda x: x[: STEPS * DEEP.batch_size], data.train))
    numbers = trial(SEED, DEEP.learning_rate, number)
    return jax.jit(train.train, static_argnums=0)(config, numbers, few)


def shrink_figure() -> Figure:
    """Returns the norm after a clip by every shrink against the norm before, at a limit of 1."""
    norm = jnp.linspace(0.0, 4.0, 81)
    names = ("hard", "smooth", "tanh", "inverse_sqrt", "psac", "normalize", "drop", "band")
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    for axes, name in zip(panels.flat, names, strict=True):
        shrink = getattr(shrinks, name)
        axes.plot(norm, norm, ":", color=LINES, linewidth=1)
        axes.plot(norm, norm * shrink(norm, jnp.ones_like(norm)), color=BLUE, linewidth=1.5)
        axes.set(ylim=(0, 2), xticks=range(5))
        axes.set_title(name, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("norm before", fontsize=9)
    figure.supylabel("norm after", fontsize=9)
    return figure


def measure_figure() -> Figure:
    """Returns a cloud of gradients of two entries, before and after a clip by every measure."""
    cloud = jax.random.normal(jax.random.key(SEED), (80, 2)) * jnp.array([1.5, 0.7])
    panels = {
        "whole, 2-norm": measures.whole(),
        "whole, 1-norm": measures.whole(jaxclip.norms.l1),
        "whole, largest entry": measures.whole(jaxclip.norms.linf),
        "per entry": measures.per_entry(),
    }
    figure = Figure(figsize=(7.5, 2.4), layout="constrained")
    for axes, (name, measure) in zip(figure.subplots(1, 4, sharex=True, sharey=True),
                                     panels.items(), strict=True):  # fmt: skip
        tx = jaxclip.clip(measure, 1.0)
        after = jax.vmap(lambda gradient, tx=tx: tx.update(gradient, tx.init(gradient))[0])(cloud)
        axes.plot(*cloud.T, ".", color=LINES, markersize=3, alpha=0.5)
        axes.plot(*after.T, ".", color=BLUE, markersize=3)
        axes.set(aspect="equal", xlim=(-4, 4), ylim=(-2.5, 2.5), xticks=(-3, 0, 3))
        axes.set_title(name, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
