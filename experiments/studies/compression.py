"""Whether a clip makes a model smaller: its weights, and what bits and pruning cost it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from experiments.compression.quantization import Grid, quantized_nbytes
from experiments.compression.weights import count, nbytes
from experiments.pages.report import Column, Table
from experiments.pages.series import Figure, Series
from experiments.studies import probes
from experiments.studies.arms import NO_CLIP, Arm, Design, Range
from experiments.studies.effects import by_setting, estimate
from experiments.studies.search import Finding
from experiments.studies.settings import SETTINGS, Setting
from experiments.studies.study import Study
from experiments.tasks.mnist_cnn import MnistCnn

GRADIENT, WEIGHTS, BOTH = "gradient clip", "weight clip", "both clips"
WITHIN = (0.05, 0.1, 0.2, 0.4)  # of the weights; those of 784-128-10 begin within 0.1
MLP = SETTINGS["mnist"]
CNN = Setting("mnist_cnn", MnistCnn(), norm=1.0, learning_rate=0.3)
CLOTHES = SETTINGS["fashion_mnist"]
CLOTHES_CNN = dataclasses.replace(
    CNN, name="fashion_mnist_cnn", task=MnistCnn(dataset="fashion_mnist")
)


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip, a clip of the gradient, of the weights, and of both."""
    settings = (MLP, CNN, CLOTHES, CLOTHES_CNN) if full else (MLP,)
    return [
        arm
        for setting in settings
        for arm in of_setting(dataclasses.replace(setting, epochs=5 if full else 1), full)
    ]


def of_setting(setting: Setting, full: bool) -> list[Arm]:
    """Returns the arms of a setting; all but that by fan-in are one program."""
    config = probes.training(setting, probe=probes.Compressed(setting.task))
    make = probes.clips(config, setting)
    limit, weights = probes.limits(setting), Range(0.03, 1.0)
    chosen = [
        make(NO_CLIP, against=""),
        make(GRADIENT, limit=limit),
        make(WEIGHTS, weights=weights),
        make(BOTH, limit=limit, weights=weights),
    ]
    within = WITHIN if full else WITHIN[:1]
    fixed = [make(f"weights within {size:g}", weights=size) for size in within]
    by_fan_in = [make("weights by fan-in", weights=Range(0.5, 8.0), fan_in=True)] if full else []
    return [*chosen, *fixed, *by_fan_in]


def tables(findings: Sequence[Finding]) -> Sequence[Table]:
    """Returns sizes and weights, and the accuracy that bits and pruning leave."""
    return [
        table
        for setting, here in by_setting(findings).items()
        for table in (weight_table(setting, here), size_table(setting, here))
    ]


def weight_table(setting: str, findings: Sequence[Finding]) -> Table:
    """Returns the statistics of the weights, the mean over the seeds."""
    columns = [
        Column("arm"),
        Column("largest weight", "{:.3g}"),
        Column("below 1/1000 of it, %", "{:.2f}"),
        Column("below 1/100 of the RMS, %", "{:.2f}"),
        Column("kurtosis", "{:.2f}"),
    ]
    scale = {"near_largest": 100, "near_rms": 100}
    rows = [
        [one.arm.name, *(scale.get(name, 1) * mean(one, name) for name in probes.STATISTICS)]
        for one in findings
    ]
    return Table(f"weights-{setting}", f"{setting}: the weights in the end", columns, rows)


def size_table(setting: str, findings: Sequence[Finding]) -> Table:
    """Returns the bytes of a model by its bits, and the accuracy of every arm with them."""
    import jax

    task = findings[0].arm.config.task
    params = jax.eval_shape(task.init, jax.random.key(0))
    names = ["float32", *(str(Grid(bits)) for bits in probes.BITS)]
    sizes = [nbytes(params), *(quantized_nbytes(params, Grid(bits)) for bits in probes.BITS)]
    columns = [Column("weights"), Column("KiB", "{:.1f}")]
    columns += [Column(f"{one.arm.name}, %", "{:.2f}") for one in findings]
    rows = [
        [name, size / 1024, *(100 * accuracy(one, name) for one in findings)]
        for name, size in zip(names, sizes, strict=True)
    ]
    title = f"{setting}: size and accuracy of {count(params)} parameters, whatever was clipped"
    return Table(f"sizes-{setting}", title, columns, rows)


def mean(finding: Finding, name: str) -> float:
    """Returns the mean of a measure over the seeds of the chosen point that did not fail."""
    values = [one.measures[name] for one in finding.chosen.trainings if not one.failed]
    return float(np.mean(values)) if values else math.nan


def accuracy(finding: Finding, name: str) -> float:
    """Returns the mean accuracy with weights of a kind."""
    return finding.chosen.mean if name == "float32" else mean(finding, name)


def figures(findings: Sequence[Finding]) -> Sequence[Figure]:
    """Returns the accuracy against bits, and against the share that was pruned."""
    return [
        figure
        for setting, here in by_setting(findings).items()
        for figure in (
            bits_figure(setting, here, per_channel=True),
            bits_figure(setting, here, per_channel=False),
            pruning_figure(setting, here),
        )
    ]


def bits_figure(setting: str, findings: Sequence[Finding], per_channel: bool) -> Figure:
    """Returns the accuracy against the bits of the weights, a line an arm."""
    names = [str(Grid(bits, per_channel)) for bits in probes.BITS]
    scope = "channel" if per_channel else "tensor"
    return Figure(
        f"bits-per-{scope}-{setting}",
        f"{setting}: rounded after training, a scale a {scope}",
        "bits of a weight",
        "accuracy, %",
        [line(one, np.array(probes.BITS), names) for one in findings],
        caption="Mean of the seeds at the point chosen in float32, and its 95 % interval.",
    )


def pruning_figure(setting: str, findings: Sequence[Finding]) -> Figure:
    """Returns the accuracy against the share of the weights that were pruned, a line an arm."""
    names = [f"pruned {share:.0%}" for share in probes.SHARES]
    return Figure(
        f"pruning-{setting}",
        f"{setting}: the smallest weights made zero after training",
        "pruned, %",
        "accuracy, %",
        [line(one, 100 * np.array(probes.SHARES), names) for one in findings],
        caption="Mean of the seeds, and its 95 % interval.",
    )


def line(finding: Finding, x: np.ndarray, names: Sequence[str]) -> Series:
    """Returns the means of measures with their intervals."""
    good = [one for one in finding.chosen.trainings if not one.failed]
    values = [100 * np.array([one.measures[name] for one in good]) for name in names]
    found = np.array([estimate(column)[:2] for column in values]).T
    means, halves = found
    return Series(finding.arm.name, x, means, means - halves, means + halves)


def answer(findings: Sequence[Finding]) -> str:
    """Returns, a line a setting, what clips of the gradient and the weights do to the size."""
    lines = []
    for setting, here in by_setting(findings).items():
        bare = here[0]
        clipped = [one for one in here if one.arm.name in (GRADIENT, WEIGHTS)]
        parts = [
            f"{one.arm.name}: {change(one, bare, 'near_rms')} points of weights near zero, "
            f"{change(one, bare, str(Grid(2)))} of accuracy at 2 bits, "
            f"{change(one, bare, 'pruned 95%')} with 95 % pruned"
            for one in clipped
        ]
        lines.append(
            f"On {setting}, parameters and bytes are those of the network, whatever is clipped. "
            f"Differences to {bare.arm.name} with 95 % intervals: {'; '.join(parts)}."
        )
    return "\n".join(lines)


def change(finding: Finding, baseline: Finding, name: str) -> str:
    """Returns the difference of a measure to a baseline, in points, with its interval."""
    pairs = zip(finding.chosen.trainings, baseline.chosen.trainings, strict=True)
    kept = [one.measures[name] - other.measures[name] for one, other in pairs]
    difference, half, _ = estimate(100 * np.array([x for x in kept if math.isfinite(x)]))
    return f"{difference:+.2f} ± {half:.2f}"


STUDY = Study(
    name="compression",
    question="Does clipping the gradient, or the weights, make a model smaller, sparser, or easier "
    "to quantize and prune?",
    arms=arms,
    measures=probes.measures(probes.NAMES),
    tables=tables,
    figures=figures,
    answer=answer,
    full=Design(
        points=8, tuning_seeds=1, rounds=2, most_rounds=3, finalists=2, final_seeds=2,
        slice_points=7, slice_seeds=1, seeds=8,
    ),
    quick=Design(
        points=4, tuning_seeds=1, rounds=1, most_rounds=1, finalists=1, final_seeds=1,
        slice_points=2, slice_seeds=1, seeds=5,
    ),
)  # fmt: skip
