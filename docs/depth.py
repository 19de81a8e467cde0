"""Draws `figures/depth.png`, the gradients of deep networks in training: `python docs/depth.py`.

It trains four networks of 20 layers for 200 steps on MNIST, about a minute.
"""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np

import jaxclip
from experiments import files
from experiments.pages import figures
from experiments.pages.series import Figure, Heat
from experiments.tasks.deep import DeepMnist, layer_norms
from experiments.training import train
from experiments.training.config import Config, trial
from experiments.training.data import Data

PATH = Path(__file__).parent / "figures" / "depth.png"
STEPS, BATCH = 200, 100
DEEP = DeepMnist(depth=20, activation="relu")
SMALL, LARGE = 0.7, 1.4  # gains
PANELS = {
    "small weights, a clip to 1": (SMALL, 1.0, {}),
    "large weights, no clip": (LARGE, math.inf, {}),
    "large weights, a clip to 1": (LARGE, 1.0, {}),
    "large weights, residual and normalized, no clip": (
        LARGE,
        math.inf,
        {"residual": True, "normalized": True},
    ),
}


def panel(title: str, gain: float, limit: float, changes: dict[str, bool], data: Data) -> Figure:
    """Returns one training as a heat map: the layers from the input up, the steps across."""
    task = dataclasses.replace(DEEP, gain=gain, **changes)
    config = Config(
        task, jaxclip.clip_by_global_norm, watch=layer_norms, batch_size=BATCH, epochs=1
    )
    numbers = trial(learning_rate=0.1, limit=limit)
    history = jax.jit(train.train, static_argnums=0)(config, numbers, data)
    norms = np.asarray(history.watched, np.float64)[0]
    logs = np.log10(np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)).T
    heat = Heat(np.arange(1, STEPS + 1), np.arange(1, DEEP.depth + 1), list(logs))
    title = f"log10 of the norm: {title} ({100 * float(history.score[-1]):.0f} %)"
    return Figure("depth", title, "step", "layer", [], heat=heat)


def draw() -> list[Figure]:
    """Returns the four panels."""
    whole = DEEP.data()
    data = whole._replace(train=jax.tree.map(lambda x: x[: STEPS * BATCH], whole.train))
    return [panel(title, *choice, data) for title, choice in PANELS.items()]


if __name__ == "__main__":
    panels = draw()
    print("\n".join(one.title for one in panels))
    files.write(PATH, lambda file: figures.save(panels, file, "png"))
