"""What limit to take: one that needs no tuning, and what it costs against one that was tuned."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import optax

import jaxclip
from experiments.pages.report import Cell, Column, Table
from experiments.studies.arms import LIGHT, Arm, Outcome
from experiments.studies.effects import by_setting, compare, find_baseline
from experiments.studies.knobs import GLOBAL, Named, make_arm, rates, unclipped_arm
from experiments.studies.search import Finding
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study
from experiments.training.config import Limit
from experiments.training.train import History
from jaxclip import measures, thresholds

TUNED = "tuned limit"
REGRET = 1.0  # points that a rule without a number may cost
# A rule is chosen on the first half, and reported on the second.
CHOSEN_ON = ("mnist", "mnist_deep", "temporal_order", "char_lm")
REPORTED_ON = ("fashion_residual", "cartpole", "mnist_bad_batches", "mnist_heavy_tails")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A clip of one of `PARTS`, whose number `limit` is not tuned."""

    name: str

    def __call__(self, limit: Limit) -> optax.GradientTransformation:
        """Returns the clip with its number."""
        measure, threshold = PARTS[self.name]
        return jaxclip.clip(measure(), threshold(limit))


PARTS: Mapping[str, tuple[Callable[[], measures.Measure], Callable[..., thresholds.Threshold]]] = {
    "every array at its quantile": (measures.per_leaf, thresholds.geometric_quantile),
    "average of the norms": (
        measures.whole,
        lambda ratio: thresholds.ema(ratio, decay=0.99, feed="raw"),
    ),
    "every array at its average": (
        measures.per_leaf,
        lambda ratio: thresholds.ema(ratio, decay=0.99, feed="raw"),
    ),
}
Clip = Callable[..., optax.GradientTransformation]
# Each with the number that it has everywhere; rules of one clip are one program.
RULES: Mapping[str, tuple[Clip, float]] = {
    "limit of 1": (GLOBAL, 1.0),
    "quantile 50 %": (Named("clip_by_quantile"), 0.5),
    "quantile 90 %": (Named("clip_by_quantile"), 0.9),
    "quantile 99 %": (Named("clip_by_quantile"), 0.99),
    "autoclip, 10th percentile": (Named("autoclip"), 10.0),
    "always of norm 1": (Named("normalize_by_global_norm"), 1.0),
    "zclip": (Named("zclip"), 2.5),
    "adagc": (Named("adagc"), 1.05),
    "1 % of the weights": (Named("adaptive_grad_clip"), 0.01),
    "average norm": (Rule("average of the norms"), 1.0),
    "twice the average norm": (Rule("average of the norms"), 2.0),
    "every array, quantile 50 %": (Rule("every array at its quantile"), 0.5),
    "every array, quantile 90 %": (Rule("every array at its quantile"), 0.9),
    "every array, average norm": (Rule("every array at its average"), 1.0),
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip, a tuned limit, and rules that leave only the learning rate to tune."""
    settings = (*CHOSEN_ON, *REPORTED_ON) if full else ("mnist_deep",)
    names = list(RULES) if full else list(RULES)[:3]
    return [arm for name in settings for arm in of_setting(SETTINGS[name], names)]


def of_setting(setting: Setting, names: Sequence[str]) -> list[Arm]:
    """Returns the arms of a setting."""
    made = [unclipped_arm(setting), make_arm("clip_by_global_norm", setting, TUNED)]
    for name in names:
        clip, number = RULES[name]
        box, fixed = {"learning_rate": rates(setting)}, {"limit": number}
        made.append(Arm(name, setting, setting.config(clip), box, fixed, against=TUNED))
    return made


def advised(history: History) -> float:
    """Returns the limit that `advise` suggests from the norms of a training."""
    norms = np.ravel(np.asarray(history.norm, np.float64))
    return jaxclip.advise(norms).percentiles[90] if np.isfinite(norms).any() else math.nan


def regrets(findings: Sequence[Finding]) -> dict[str, dict[str, float]]:
    """Returns by how many points each rule is below the tuned limit, setting by setting."""
    found: dict[str, dict[str, float]] = {}
    for one in findings:
        if one.arm.against == TUNED:
            tuned = find_baseline(one, findings)
            # A seed that failed has learned nothing: no rule may be saved by failing.
            scores = [with_floor(finding.chosen).mean() for finding in (tuned, one)]
            found.setdefault(one.arm.name, {})[one.arm.setting.name] = 100 * (scores[0] - scores[1])
    return found


def with_floor(outcome: Outcome) -> np.ndarray:
    """Returns the scores of all seeds, those that failed as having learned nothing."""
    return np.nan_to_num(outcome.scores, nan=outcome.arm.setting.floor)


def worst(regret: Mapping[str, float], settings: Sequence[str]) -> float:
    """Returns the largest regret on some settings; nan without any of them."""
    return max((regret[name] for name in settings if name in regret), default=math.nan)


def tables(findings: Sequence[Finding]) -> Sequence[Table]:
    """Returns the regrets of the rules, and that of the limit that `advise` suggests."""
    settings = list(by_setting(findings))
    columns = [Column("rule"), Column("worst, chosen on", "{:.2f}")]
    columns += [Column("worst, reported on", "{:.2f}")]
    columns += [Column(name, "{:.2f}") for name in settings]
    rows: list[list[Cell]] = [
        [name, *(finite(worst(regret, half)) for half in (CHOSEN_ON, REPORTED_ON))]
        + [finite(regret.get(setting, math.nan)) for setting in settings]
        for name, regret in regrets(findings).items()
    ]
    title = "Points lost against the tuned limit"
    return [Table("regrets", title, columns, rows), advice_table(findings)]


def advice_table(findings: Sequence[Finding]) -> Table:
    """Returns what the limit that `advise` suggests costs, read off the scores along the limit."""
    rows: list[list[Cell]] = []
    for setting, here in by_setting(findings).items():
        named = {one.arm.name: one for one in here}
        along = named[TUNED].slices["limit"]
        advice = float(np.nanmedian(named["no clip"].chosen.measure("advised limit")))
        places = np.log([one.point["limit"] for one in along])
        scores = np.array([one.validation for one in along])
        lost = 100 * (scores.max() - np.interp(np.log(advice), places, scores))
        rows.append([setting, advice, named[TUNED].chosen.point["limit"], float(lost)])
    columns = [Column("setting"), Column("advised", "{:.3g}"), Column("tuned", "{:.3g}")]
    columns.append(Column("points lost", "{:.2f}"))
    return Table("advice", "The limit that `advise` suggests", columns, rows)


def finite(number: float) -> float | None:
    """Returns a number, or an empty cell."""
    return number if math.isfinite(number) else None


def answer(findings: Sequence[Finding]) -> str:
    """Returns whether the rule that loses least where it is chosen loses little elsewhere."""
    found = regrets(findings)
    name = min(found, key=lambda rule: worst(found[rule], CHOSEN_ON))
    chosen, reported = (worst(found[name], half) for half in (CHOSEN_ON, REPORTED_ON))
    lines = [
        f"Of {len(found)} rules without a number to tune, {name} loses least where it was chosen: "
        f"{chosen:.2f} points at worst against a tuned limit."
    ]
    if math.isfinite(reported):
        word = "Yes" if max(chosen, reported) <= REGRET else "No"
        lines = [
            f"{word}: on settings that the choice has not seen, {name} loses {reported:.2f} points "
            f"at worst.",
            *lines,
        ]
    for setting, here in by_setting(findings).items():
        [tuned] = [one for one in here if one.arm.name == TUNED]
        effect = compare(tuned, find_baseline(tuned, findings))
        lines.append(
            f"On {setting}, the tuned limit gains {100 * effect.difference:+.2f} points over no "
            f"clip (95 % interval {100 * effect.low:+.2f} to {100 * effect.high:+.2f})."
        )
    return "\n".join(lines)


STUDY = Study(
    name="limits",
    question="Is there a limit that needs no tuning, and loses no more than a point to a tuned one "
    "anywhere?",
    arms=arms,
    measures={"advised limit": advised},
    tables=tables,
    answer=answer,
    full=LIGHT,
)
