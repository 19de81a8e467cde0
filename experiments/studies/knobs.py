"""Every named method with the one number that studies tune, and where it is searched at first.

The range of a limit surrounds the usual norm of a setting, which `share` scales to the measure of
the method: the largest entry is about a hundredth of the norm, a row about a tenth. The range of a
ratio, a quantile or a factor surrounds its published default, and is the same everywhere.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

import jaxclip
from experiments.studies.arms import NO_CLIP, Arm, Range
from experiments.studies.settings import Setting
from experiments.training.config import Limit

AROUND = Range(0.03, 3.0)
FIT = 0.3  # of the usual norm: a limit that acts
SPREAD = 10.0  # of the learning rates, on either side of the usual one


class Knob(NamedTuple):
    """A method and the number that is tuned.

    Attributes:
        argument: its name in the method.
        range: where it is searched at first; that of a limit is multiplied by the setting's norm.
        usual: a value that acts; that of a limit is multiplied as well.
        share: the part of that norm that the method measures; None: the range is absolute.
        clip_last: whether the method comes after the optimizer.
    """

    argument: str
    range: Range = AROUND
    usual: float = FIT
    share: float | None = None
    clip_last: bool = False

    def scale(self, setting: Setting) -> float:
        """Returns what its range is multiplied by in a setting."""
        return 1.0 if self.share is None else self.share * setting.norm


KNOBS = {
    "clip_by_value": Knob("limit", share=0.01),
    "clip_by_global_norm": Knob("limit", share=1),
    "clip_by_leaf_norm": Knob("limit", share=0.5),
    "clip_by_group_norm": Knob("limits", share=0.5),
    "clip_by_unit_norm": Knob("limit", share=0.1),
    "clip_by_block_rms": Knob("limit", share=0.003),
    "adaptive_grad_clip": Knob("ratio", Range(0.001, 1.0), 0.03),
    "normalize_by_global_norm": Knob("norm", share=1),
    "smooth_clip_by_global_norm": Knob("limit", share=1),
    "autoclip": Knob("percentile", Range(1.0, 99.0, log=False, most=100.0), 50.0),
    "zclip": Knob("z", Range(0.5, 8.0), 2.5),
    "adagc": Knob("ratio", Range(1.0, 2.0, least=1.0), 1.2),
    "clip_by_norm_ratio": Knob("ratio", Range(0.8, 4.0), 1.2),
    "clip_by_history": Knob("sigma", Range(0.0, 5.0, log=False), 2.0),
    "clip_by_quantile": Knob("quantile", Range(0.1, 0.99, log=False, least=0.01, most=0.999), 0.9),
    "spam_clip": Knob("ratio", Range(5.0, 50000.0), 500.0),
    "limit_norm_growth": Knob("growth", Range(1.001, 1.5, least=1.0001), 1.03),
    "clippy": Knob("relative", Range(0.001, 1.0), 0.1, clip_last=True),
    "clip_singular_values": Knob("limit", share=0.5),
    "drop_spikes": Knob("factor", Range(1.2, 8.0, least=1.0), 2.0),
    "u_clip": Knob("limit", share=0.01),
    "clip_weights": Knob("limit", Range(0.1, 10.0), 1.0, clip_last=True),
    "clip_weights_by_fan_in": Knob("scale", Range(0.5, 8.0), 2.0, clip_last=True),
}


@dataclasses.dataclass(frozen=True)
class Named:
    """A named method of its number, as a `Config` takes it; equal ones are one program."""

    method: str

    def __call__(self, limit: Limit, **further: Any) -> optax.GradientTransformation:
        """Returns the method with its number."""
        return make_clip(self.method, limit, **further)


GLOBAL = Named("clip_by_global_norm")


def make_arm(method: str, setting: Setting, name: str | None = None, **changes: Any) -> Arm:
    """Returns a named method in a setting, tuned over the learning rate and its number.

    Args:
        method: its name in jaxclip.
        setting: the setting.
        name: of the arm; by default that of the method.
        changes: fields of `Config`.
    """
    knob = KNOBS[method]
    config = setting.config(Named(method), **{"clip_last": knob.clip_last, **changes})
    box = {"learning_rate": rates(setting), "limit": scaled(knob.range, knob.scale(setting))}
    return Arm(name or method, setting, config, box, labels={"limit": knob.argument})


def unclipped_arm(setting: Setting, name: str = NO_CLIP, **changes: Any) -> Arm:
    """Returns the setting with a limit of infinity, tuned over the learning rate: a baseline."""
    box = {"learning_rate": rates(setting)}
    return Arm(name, setting, setting.config(GLOBAL, **changes), box, {"limit": math.inf}, "")


def rates(setting: Setting) -> Range:
    """Returns where the learning rate of a setting is searched at first."""
    return Range(setting.learning_rate / SPREAD, setting.learning_rate * SPREAD)


def scaled(range: Range, factor: float) -> Range:
    """Returns a range with all of its values multiplied."""
    ends = {name: factor * getattr(range, name) for name in ("low", "high", "least", "most")}
    return dataclasses.replace(range, **ends)


def make_clip(method: str, number: Limit, **further: Any) -> optax.GradientTransformation:
    """Returns a named method with its number."""
    if method == "clip_by_group_norm":
        limits = {"matrix": number, "vector": number}
        return jaxclip.clip_by_group_norm(label_by_rank, limits, **further)
    make: Callable[..., optax.GradientTransformation] = jaxclip.named()[method]
    arguments: Mapping[str, Any] = {KNOBS[method].argument: number, **further}
    return make(**arguments)


def label_by_rank(params: Any) -> Any:
    """Returns the groups: matrices, and everything else."""
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", params)
