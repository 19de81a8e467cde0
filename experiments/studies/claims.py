"""What is said about clips, and what the studies say: a verdict a claim, from the records alone.

A claim is that one arm of a study is better than another, by a measure. It holds where the paired
permutation test over the seeds sees the difference, after Benjamini & Hochberg over all claims. It
is false where the difference is seen to be the other way, or where its 95 % interval leaves no room
for a difference that matters. Where neither is so, it has not been shown.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from experiments.pages.report import Column, Table, as_markdown
from experiments.studies import catalog, verify
from experiments.studies.arms import NO_CLIP, Training
from experiments.studies.compression import BOTH, GRADIENT, WEIGHTS
from experiments.studies.depth import CLIPPED
from experiments.studies.effects import LEVEL, by_setting, estimate, permutation_test
from experiments.studies.quantized_training import IN_TRAINING
from experiments.studies.search import Finding

Word = Literal["true", "false", "depends", "not shown", "untested"]
POINT = 0.01
SCORE = ""  # the measure that is the score itself


class Claim(NamedTuple):
    """That an arm of a study is more, or less, than another by a measure.

    Attributes:
        text: the claim, in plain words.
        study: the study that answers it.
        arm: the arm.
        baseline: the arm of the same setting that it is compared with.
        measure: what is compared; by default the score.
        unit: of a hundred times the difference; "points" are of accuracy.
        matters: the least difference that would matter.
        less: whether the claim is that the arm has less, and not more.
        settings: whether a setting is one that the claim is about.
        note: what holds without any measurement.
    """

    text: str
    study: str
    arm: str
    baseline: str = NO_CLIP
    measure: str = SCORE
    unit: str = "points"
    matters: float = POINT
    less: bool = False
    settings: Callable[[str], bool] = lambda name: True
    note: str = ""


class Difference(NamedTuple):
    """The difference of a claim in one setting, with its 95 % interval and its p-value."""

    setting: str
    mean: float
    half: float
    p: float
    pairs: int
    edges: bool


class Verdict(NamedTuple):
    """What the data say of a claim."""

    claim: Claim
    word: Word
    differences: Sequence[Difference]
    full: bool


CLAIMS = (
    Claim(
        "Gradient clipping makes the model smaller.",
        "compression",
        GRADIENT,
        measure="near_rms",
        unit="points of the weights near zero",
        note="The parameters and their bytes are the same with and without a clip, which changes "
        "values and no shapes; what may change is how many values are near zero.",
    ),
    Claim(
        "Clipping gradients makes the weights too sparse.",
        "compression",
        GRADIENT,
        measure="near_largest",
        unit="points of the weights below 1/1000 of the largest",
    ),
    Claim(
        "Clipping the weights makes them sparse.",
        "compression",
        WEIGHTS,
        measure="near_rms",
        unit="points of the weights near zero",
    ),
    Claim(
        "Clipping gradients and weights together gives a better model than neither.",
        "compression",
        BOTH,
    ),
    Claim(
        "A model trained with a gradient clip is easier to quantize.",
        "quantized_training",
        GRADIENT,
    ),
    Claim(
        "Clipping the weights in training keeps the accuracy at fewer bits.",
        "quantized_training",
        WEIGHTS,
        settings=lambda name: not name.endswith(" 8 bits"),
    ),
    Claim(
        "Quantization in training is better than a weight clip and rounding afterwards.",
        "quantized_training",
        IN_TRAINING,
        baseline=WEIGHTS,
        settings=lambda name: not name.endswith(" 8 bits"),
    ),
    Claim(
        "A weight clip helps quantization in training as well.",
        "quantized_training",
        f"{IN_TRAINING}, weight clip",
        baseline=IN_TRAINING,
    ),
    Claim("Distillation makes a small model better.", "distillation", "distilled"),
    Claim(
        "Distillation should be combined with a gradient clip.",
        "distillation",
        "distilled, gradient clip",
        baseline="distilled",
    ),
    Claim(
        "A model trained with a gradient clip is easier to prune.",
        "compression",
        GRADIENT,
        measure="pruned 95%",
        unit="points with 95 % pruned",
    ),
    Claim(
        "A model trained with a weight clip is easier to prune.",
        "compression",
        WEIGHTS,
        measure="pruned 95%",
        unit="points with 95 % pruned",
    ),
    Claim("A gradient clip helps a VAE.", "vae", "global norm", unit="nats"),
    Claim(
        "A gradient clip helps a WGAN, whatever keeps its critic Lipschitz.",
        "wgan",
        "global norm",
        unit="hundredths of the Fréchet distance",
    ),
    Claim(
        "A clip mends exploding gradients: it bounds them.",
        "depth",
        CLIPPED,
        measure="largest norm",
        unit="hundredths of a decade of the largest norm before the clip",
        matters=0.1,
        less=True,
    ),
    Claim(
        "A clip makes gradients vanish.",
        "depth",
        CLIPPED,
        measure="first layer, end",
        unit="hundredths of a decade of the first layer's gradient in the end",
        matters=0.5,
        less=True,
        settings=lambda name: "plain" in name,
    ),
    Claim(
        "A clip makes plain deep networks trainable.",
        "depth",
        CLIPPED,
        settings=lambda name: "plain" in name and int(name.rpartition(" ")[2]) >= 20,
    ),
)


def judge(known: Mapping[str, tuple[Sequence[Finding], bool]]) -> list[Verdict]:
    """Returns a verdict a claim.

    Args:
        known: the findings of the studies that have results, and whether those are of the full
            form.
    """
    found = [
        [] if claim.study not in known else differences(claim, known[claim.study][0])
        for claim in CLAIMS
    ]
    raw = np.array([one.p for several in found for one in several])
    tested = np.isfinite(raw)
    if tested.any():
        raw[tested] = stats.false_discovery_control(raw[tested])
    adjusted = iter(raw.tolist())
    found = [[one._replace(p=next(adjusted)) for one in several] for several in found]
    return [
        Verdict(claim, decide(claim, several), several, known.get(claim.study, ([], False))[1])
        for claim, several in zip(CLAIMS, found, strict=True)
    ]


def differences(claim: Claim, findings: Sequence[Finding]) -> list[Difference]:
    """Returns the difference of a claim in every setting that it is about and that has its arms."""
    made = []
    for setting, here in by_setting(findings).items():
        arms = {one.arm.name: one for one in here}
        if claim.settings(setting) and {claim.arm, claim.baseline} <= arms.keys():
            pair = arms[claim.arm], arms[claim.baseline]
            values = np.subtract(*(value_of(one, claim.measure) for one in pair))
            values = values[np.isfinite(values)]
            mean, half, _ = estimate(values)
            edges = any(one.edges for one in pair)
            p = permutation_test(values)
            made.append(Difference(setting, mean, half, p, len(values), edges))
    return made


def value_of(finding: Finding, measure: str) -> np.ndarray:
    """Returns a measure f64[seeds] at the chosen point; a seed that failed is nan."""

    def value(one: Training) -> float:
        if one.failed:
            return math.nan
        return one.test if measure == SCORE else one.measures[measure]

    return np.array([value(one) for one in finding.chosen.trainings])


def decide(claim: Claim, several: Sequence[Difference]) -> Word:
    """Returns what the differences say of a claim."""
    if not several:
        return "untested"
    words: set[Word] = {decide_one(claim, one) for one in several}
    if len(words) == 1:
        return words.pop()
    return "depends" if "true" in words else "not shown"


def decide_one(claim: Claim, one: Difference) -> Word:
    """Returns what the difference in one setting says of a claim."""
    gain = -one.mean if claim.less else one.mean
    if gain + one.half < claim.matters:
        return "false"  # too small to matter, however surely it is seen
    if one.p < LEVEL:
        return "true" if gain > 0 else "false"
    return "not shown"


# In words


def sentence(verdict: Verdict) -> str:
    """Returns what was found, in a sentence or two."""
    claim, several = verdict.claim, verdict.differences
    note = f"{claim.note} " if claim.note else ""
    if not several:
        return f"{note}Not tested yet."
    largest = max(several, key=lambda one: -one.mean if claim.less else one.mean)
    seen = sum(one.p < LEVEL for one in several)
    return (
        f"{note}{claim.arm} against {claim.baseline}: {effect(largest)} {claim.unit} on "
        f"{largest.setting}, the most of {len(several)} settings; a difference is seen on {seen}."
        + ("" if verdict.full else " From the quick form: a first look only.")
    )


def effect(one: Difference) -> str:
    """Returns a difference with its interval."""
    edge = " (a best point is at the edge of its grid)" if one.edges else ""
    return f"{100 * one.mean:+.2f} ± {100 * one.half:.2f}{edge}"


def table(verdicts: Sequence[Verdict]) -> Table:
    """Returns verdicts as a table, a row a claim."""
    columns = [
        Column("claim"),
        Column("verdict"),
        Column("what was found"),
        Column("differences, 95 %"),
        Column("seeds"),
        Column("command"),
    ]
    rows = [
        [
            one.claim.text,
            one.word,
            sentence(one),
            "; ".join(f"{x.setting}: {effect(x)}" for x in one.differences) or None,
            ", ".join(sorted({str(x.pairs) for x in one.differences})) or None,
            f"python -m experiments compare {one.claim.study} --full",
        ]
        for one in verdicts
    ]
    return Table("claims", "Claims", columns, rows)


HEAD = """# Claims

What is said about clipping, and what this project's own trainings say. `python docs/claims.py`
writes this page from the records in `experiments/results/`, and a test holds it to them. In each
record, every arm was tuned by held-out data with the same budget, the learning rate among its
numbers.

A claim is *true* where a paired permutation test over the seeds sees the difference in every
setting (at a false discovery rate of 5 % over all claims). It is *false* where the difference is
the other way, or where its 95 % interval leaves no room for one that matters: one point of
accuracy, unless the row says otherwise. It *depends* where settings differ, and is *not shown*
where neither can be said. An *untested* claim has no committed results yet: its command makes them.

"""


def markdown(folder: Path = catalog.RESULTS) -> str:
    """Returns the page of the claims, from the records below a folder."""
    return HEAD + as_markdown(table(judge(read(folder))))


def read(folder: Path) -> dict[str, tuple[Sequence[Finding], bool]]:
    """Returns the findings of the studies whose records are below a folder, and their form."""
    known = {}
    for study in dict.fromkeys(claim.study for claim in CLAIMS):
        if (folder / study / catalog.CONFIG).is_file():
            replayed = verify.replay(folder / study)
            known[study] = replayed.findings, replayed.config["full"]
    return known
