"""What the studies of model size measure of the parameters in the end, and the arms they share."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from experiments.compression.pruning import prune
from experiments.compression.quantization import Grid, rounded
from experiments.compression.weights import statistics
from experiments.studies.arms import NO_CLIP, Arm, Range
from experiments.studies.knobs import AROUND, GLOBAL, rates, scaled
from experiments.studies.settings import Setting
from experiments.training.config import Config, Params, Task
from experiments.training.train import History

BITS = (8, 6, 4, 3, 2)
GRIDS = tuple(Grid(bits, per_channel) for per_channel in (False, True) for bits in BITS)
SHARES = (0.5, 0.8, 0.9, 0.95, 0.98)
STATISTICS = ("range", "near_largest", "near_rms", "kurtosis")
WEIGHTS = "optimizer.weights"


@dataclasses.dataclass(frozen=True)
class Compressed:
    """The statistics of a model's weights, and its scores once they are quantized or pruned."""

    task: Task

    def __call__(self, params: Params, test: Any) -> jax.Array:
        """Returns the numbers f32[n] of `NAMES`."""
        models = [rounded(params, grid) for grid in GRIDS]
        models += [prune(params, share) for share in SHARES]
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
        scores = jax.lax.map(lambda model: self.task.score(model, test), together)
        found = statistics(params)
        return jnp.concatenate([jnp.stack([found[name] for name in STATISTICS]), scores])


NAMES = (*STATISTICS, *map(str, GRIDS), *(f"pruned {share:.0%}" for share in SHARES))


def probed(history: History, index: int) -> float:
    """Returns one of the numbers that were probed of a training."""
    return float(np.asarray(history.probed)[index])


def measures(names: Sequence[str]) -> Mapping[str, Callable[[History], float]]:
    """Returns what a probe measures, by name."""
    return {name: functools.partial(probed, index=i) for i, name in enumerate(names)}


@dataclasses.dataclass(frozen=True)
class WithWeightClip:
    """An optimizer, and after it a clip of the weights; infinity clips nothing.

    Attributes:
        optimizer: makes the optimizer of its learning rate.
        by_fan_in: whether a limit is in units of the bound of the initialization.
    """

    optimizer: Callable[[Any], optax.GradientTransformation]
    by_fan_in: bool = False

    def __call__(self, rate: Any, weights: Any) -> optax.GradientTransformation:
        """Returns the chain, of a learning rate and the limit of the weights."""
        clip = jaxclip.clip_weights_by_fan_in if self.by_fan_in else jaxclip.clip_weights
        return optax.chain(self.optimizer(rate), clip(weights, name="weights"))


def clips(config: Config, setting: Setting) -> Callable[..., Arm]:
    """Returns the function that makes an arm of a training, by what is clipped.

    It takes the name, `limit` and `weights`: a number, infinity for none, or a `Range` to tune.
    """
    choices = (setting.optimizer, False), (setting.optimizer, True)
    plain, by_fan_in = (
        dataclasses.replace(config, optimizer=WithWeightClip(*choice)) for choice in choices
    )

    def arm(
        name: str,
        limit: float | Range = math.inf,
        weights: float | Range = math.inf,
        fan_in: bool = False,
        against: str = NO_CLIP,
        **tuned: float | Range,
    ) -> Arm:
        numbers = {"learning_rate": rates(setting), "limit": limit, WEIGHTS: weights, **tuned}
        return Arm(
            name,
            setting,
            by_fan_in if fan_in else plain,
            box={key: value for key, value in numbers.items() if isinstance(value, Range)},
            fixed={key: value for key, value in numbers.items() if not isinstance(value, Range)},
            against=against,
            labels={WEIGHTS: "limit of the weights", "limit": "limit of the gradient"},
        )

    return arm


def limits(setting: Setting) -> Range:
    """Returns where the limit of the gradient is searched at first."""
    return scaled(AROUND, setting.norm)


def training(setting: Setting, **changes: Any) -> Config:
    """Returns the training of a setting with a clip of the global norm."""
    return setting.config(GLOBAL, **changes)
