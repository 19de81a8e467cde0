"""Writes `choosing.md` from the studies' records: `python docs/choosing.py`."""

import functools
import math
from pathlib import Path
from typing import NamedTuple

from experiments.studies import catalog, verify
from experiments.studies.effects import Effect, find_effects
from experiments.studies.page import rate_width, width_text

PAGE = Path(__file__).parent / "choosing.md"
UNTESTED = "untested"


class Row(NamedTuple):
    """A piece of advice, and the comparison that it stands or falls with.

    Attributes:
        seen: what the reader sees.
        take: what to take then.
        study: the name of the study; empty: there is none yet.
        setting: of the study.
        arm: of that setting, which is compared with what the study says.
    """

    seen: str
    take: str
    study: str = ""
    setting: str = ""
    arm: str = ""


ROWS = (
    Row("Nothing yet", "`clip_by_global_norm(1.0)`", "language", "char_lm", "limit of 1"),
    Row(
        "You can search for the limit",
        "`clip_by_global_norm(limit)`",
        "limits",
        "mnist_deep",
        "tuned limit",
    ),
    Row(
        "You train by Adam",
        "a clip ahead of it, which acts only where a step differs from those before",
        "optimizers",
        "mnist_deep",
        "Adam, clip",
    ),
    Row(
        "Norms fall over the training",
        "a schedule for a limit that falls with them",
        "schedules",
        "mnist_deep",
        "limit falls on a cosine, falling rate",
    ),
    Row(
        "Norms drift, and you cannot search",
        "`clip_by_quantile(0.9, initial=1.0)`, which clips one step in ten and has a state of one "
        "number. `autoclip(90.0)` clips as many; `autoclip(10.0)`, the percentile of its paper, "
        "clips nine steps in ten",
        "limits",
        "mnist_deep",
        "quantile 90 %",
    ),
    Row(
        "Rare spikes among otherwise steady norms",
        '`zclip()`; with `feed="raw"` where the level of the norms changes for good',
        "spikes",
        "spikes",
        "zclip",
    ),
    Row(
        "One layer is much larger than the others",
        "`clip_by_leaf_norm`, `clip_by_group_norm`, or `adagc()`, which learns a limit for every "
        "array",
    ),
    Row(
        "Large batches without normalization layers",
        "`adaptive_grad_clip(0.01)`; leave out the last layer with `optax.masked`",
    ),
    Row(
        "Single entries explode",
        "`clip_by_value`, or `u_clip`, which carries the clipped remainder into the next gradient",
        "methods",
        "mnist_heavy_tails",
        "clip_by_value",
    ),
    Row(
        "Batches are corrupted from time to time",
        "`skip_on_spike(optimizer)`, which skips the step, moments and all",
        "remedies",
        "mnist_bad_batches",
        "skip_on_spike",
    ),
    Row(
        "nan from time to time",
        "`skip_nonfinite(optimizer)`",
        "remedies",
        "overflow",
        "skip_nonfinite",
    ),
    Row(
        "A few labels are wrong",
        "`jaxclip.clipped_grad`, which clips every example",
        "per_example",
        "mnist_wrong_labels",
        "each example",
    ),
    Row(
        "A few examples have a huge loss",
        "`jaxclip.clipped_grad`, which clips every example",
        "per_example",
        "mnist_huge_examples",
        "each example",
    ),
    Row(
        "Gradients are accumulated",
        "a clip of every micro-batch",
        "accumulation",
        "mnist_bad_batches",
        "every micro-batch",
    ),
)
HEAD = """# How to choose

Every row names the comparison that it stands or falls with, and says what came of it: the
difference in accuracy, in points with a 95 % interval, between trainings that were both tuned over
the learning rate, and the decades of learning rates that work. **"untested" means that no study of
that design has been run in full: the row says what the method was made for, and no more.** A
difference whose interval holds 0 was not seen.

`python docs/choosing.py` writes this page from `experiments/results/`;
[Experiments](experiments.md) has the design, and `python -m experiments verify STUDY` computes a
study anew.

"""
TAIL = """
Whatever you take, look at `jaxclip.metrics(opt_state)["clip"]`: its `clip_rate` says how often the
limit acts. `python -m experiments pilot TASK`, or `jaxclip.advise(norms)` for a run of your own,
suggests a limit. [Recipes](recipes.md) has where in a chain a clip goes. For privacy, every example
is clipped: [Private training](private.md).

Wherever a limit is asked for, a number, a traced array, an Optax schedule, a threshold, or a tree
of these will do.
"""


def page(results: Path = catalog.RESULTS) -> str:
    """Returns the whole page."""
    cells = [(row.seen, row.take, evidence(row, results)) for row in ROWS]
    head = ("What you see", "What to take", "Evidence")
    lines = [" | ".join(line) for line in (head, ("---",) * 3, *cells)]
    return HEAD + "\n".join(f"| {line} |" for line in lines) + "\n" + TAIL


def evidence(row: Row, results: Path) -> str:
    """Returns what the study of a row found."""
    if not row.study:
        return f"{UNTESTED}; no study asks"
    if not (results / row.study / catalog.TRAININGS).is_file():
        return f"{UNTESTED}; `{row.study}` asks"
    [effect] = [
        effect
        for effect in effects(results / row.study)
        if (effect.finding.arm.setting.name, effect.finding.arm.name) == (row.setting, row.arm)
    ]
    return f"{in_words(effect)} (`{row.study}`, {row.setting})"


@functools.cache
def effects(folder: Path) -> list[Effect]:
    """Returns the effects that follow from the record in a folder."""
    return find_effects(verify.replay(folder).findings)


def in_words(effect: Effect) -> str:
    """Returns an effect in a few words."""
    base = effect.baseline.arm.name
    failed = [one.chosen.failed for one in (effect.finding, effect.baseline)]
    if math.isnan(effect.difference):
        words = f"against {base}: no seeds left to compare"
    else:
        words = (
            f"{100 * effect.difference:+.1f} points against {base} "
            f"({100 * effect.low:+.1f} to {100 * effect.high:+.1f})"
        )
    if any(failed):
        words += f"; {failed[0]} of its seeds failed, against {failed[1]}"
    widths = [rate_width(one) for one in (effect.finding, effect.baseline)]
    shown = [width_text(width) for width in widths if width is not None]
    return f"{words}; rates of {' against '.join(shown)} decades" if len(shown) == 2 else words


if __name__ == "__main__":
    PAGE.write_text(page())
