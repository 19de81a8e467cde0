"""Every named method with the one number that studies tune, and five values for it each.

The values of a limit surround the usual norm of a setting, which `share` scales to the measure of
the method: the largest entry is about a hundredth of the norm, a row about a tenth. The values of a
ratio, a quantile or a factor surround its published default, and are the same everywhere.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxclip
from experiments.studies.settings import Setting
from experiments.studies.study import Arm
from experiments.sweeps.grid import product, values
from experiments.training.config import Limit

AROUND = (0.03, 0.1, 0.3, 1.0, 3.0)


class Knob(NamedTuple):
    """A method and the number that is tuned.

    Attributes:
        argument: its name in the method.
        values: five of them; those of a limit are multiplied by the norm of the setting.
        share: the part of that norm that the method measures; None: the values are absolute.
        clip_last: whether the method comes after the optimizer.
    """

    argument: str
    values: Sequence[float] = AROUND
    share: float | None = None
    clip_last: bool = False


KNOBS = {
    "clip_by_value": Knob("limit", share=0.01),
    "clip_by_global_norm": Knob("limit", share=1),
    "clip_by_leaf_norm": Knob("limit", share=0.5),
    "clip_by_group_norm": Knob("limits", share=0.5),
    "clip_by_unit_norm": Knob("limit", share=0.1),
    "clip_by_block_rms": Knob("limit", share=0.003),
    "adaptive_grad_clip": Knob("ratio", (0.001, 0.01, 0.03, 0.1, 1.0)),
    "normalize_by_global_norm": Knob("norm", share=1),
    "smooth_clip_by_global_norm": Knob("limit", share=1),
    "autoclip": Knob("percentile", (1, 10, 50, 90, 99)),
    "zclip": Knob("z", (1.0, 2.0, 2.5, 3.5, 5.0)),
    "adagc": Knob("ratio", (1.0, 1.05, 1.2, 1.5, 2.0)),
    "clip_by_norm_ratio": Knob("ratio", (0.9, 1.0, 1.2, 2.0, 4.0)),
    "clip_by_history": Knob("sigma", (0.0, 1.0, 2.0, 3.0, 5.0)),
    "clip_by_quantile": Knob("quantile", (0.1, 0.5, 0.9, 0.95, 0.99)),
    "spam_clip": Knob("ratio", (5.0, 50.0, 500.0, 5000.0, 50000.0)),
    "limit_norm_growth": Knob("growth", (1.001, 1.01, 1.03, 1.1, 1.5)),
    "clippy": Knob("relative", (0.001, 0.01, 0.1, 0.5, 1.0), clip_last=True),
    "clip_singular_values": Knob("limit", share=0.5),
    "drop_spikes": Knob("factor", (1.2, 1.5, 2.0, 4.0, 8.0)),
    "u_clip": Knob("limit", share=0.01),
    "clip_weights": Knob("limit", (0.1, 0.3, 1.0, 3.0, 10.0), clip_last=True),
    "clip_weights_by_fan_in": Knob("scale", (0.5, 1.0, 2.0, 4.0, 8.0), clip_last=True),
}


def make_arm(method: str, setting: Setting) -> Arm:
    """Returns a named method in a setting, with the grid of its number."""
    knob = KNOBS[method]
    factor = 1.0 if knob.share is None else knob.share * setting.norm
    grid = values("limit", *(factor * value for value in knob.values))
    config = setting.config(lambda limit: make_clip(method, limit), clip_last=knob.clip_last)
    return Arm(method, setting, config, at_learning_rate(setting, grid), knob.argument)


def unclipped_arm(setting: Setting) -> Arm:
    """Returns the setting with no clip but its metrics, in a grid of the one point there is."""
    config = setting.config(lambda limit: jaxclip.clip_by_global_norm(jnp.inf))
    return Arm(
        "no clip",
        setting,
        config,
        at_learning_rate(setting, values("limit", float("inf"))),
        knob="",
    )


def at_learning_rate(setting: Setting, grid: Sequence[Any]) -> Sequence[Any]:
    """Returns a grid at the learning rate of a setting."""
    return product(values("learning_rate", setting.learning_rate), grid)


def make_clip(method: str, number: Limit) -> optax.GradientTransformation:
    """Returns a named method with its number."""
    if method == "clip_by_group_norm":
        limits = {"matrix": number, "vector": number}
        return jaxclip.clip_by_group_norm(label_by_rank, limits)
    return jaxclip.named()[method](**{KNOBS[method].argument: number})


def label_by_rank(params: Any) -> Any:
    """Returns the groups: matrices, and everything else."""
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", params)
