"""Which blocks to clip, where each is clipped as often: the whole, arrays, units, entries."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import optax

import jaxclip
from experiments.studies.arms import NO_CLIP, Arm
from experiments.studies.knobs import label_by_rank, rates, unclipped_arm
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study
from experiments.training.config import Limit
from jaxclip import measures, thresholds

MEASURES: Mapping[str, Callable[[], measures.Measure]] = {
    "the whole": measures.whole,
    "matrices and vectors": lambda: measures.per_group(label_by_rank),
    "every array": measures.per_leaf,
    "every unit": measures.per_unit,
    "every entry": measures.per_entry,
    "singular values": measures.singular_values,
}
QUANTILES = (0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class AtQuantile:
    """A clip whose every block is clipped as often: at a quantile of its own norms."""

    measure: str

    def __call__(self, limit: Limit) -> optax.GradientTransformation:
        """Returns the clip; the limit is the quantile."""
        assert not callable(limit)
        return jaxclip.clip(MEASURES[self.measure](), thresholds.geometric_quantile(limit))


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip, and every measure at each of the quantiles."""
    settings = ("mnist_deep", "cartpole") if full else ("mnist_deep",)
    names = list(MEASURES) if full else ["the whole", "every array", "every entry"]
    quantiles = QUANTILES if full else QUANTILES[:1]
    return [arm for name in settings for arm in of_setting(SETTINGS[name], names, quantiles)]


def of_setting(setting: Setting, names: Sequence[str], quantiles: Sequence[float]) -> list[Arm]:
    """Returns the arms of a setting.

    The clip of the whole is compared with no clip, every other one with that of the whole.
    """
    made = [unclipped_arm(setting)]
    for quantile in quantiles:
        share = f"clipped {100 * (1 - quantile):.0f} %"
        whole = f"the whole, {share}"
        for name in names:
            against = NO_CLIP if name == "the whole" else whole
            config = setting.config(AtQuantile(name))
            box, fixed = {"learning_rate": rates(setting)}, {"limit": quantile}
            made.append(Arm(f"{name}, {share}", setting, config, box, fixed, against))
    return made


STUDY = Study(
    name="scopes",
    question="Clip the whole gradient, groups, arrays, units, entries or singular values, where "
    "each block is clipped as often?",
    arms=arms,
)
