"""Few bits: weights rounded after training, clipped in training or not; and quantized training."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.compression.quantization import Grid, Quantized
from experiments.pages.series import Figure, Series
from experiments.studies import compression, probes
from experiments.studies.arms import NO_CLIP, Arm, Range
from experiments.studies.effects import estimate
from experiments.studies.search import Finding
from experiments.studies.settings import Setting
from experiments.studies.study import Study

BITS = (8, 4, 3, 2)
IN_TRAINING = "quantized in training"


def arms(full: bool) -> Sequence[Arm]:
    """Returns, by bits, weights that are rounded after training, and in training."""
    settings = (compression.MLP, compression.CNN) if full else (compression.MLP,)
    return [
        arm
        for setting in settings
        for bits in (BITS if full else BITS[-1:])
        for arm in of_bits(dataclasses.replace(setting, epochs=5 if full else 1), bits)
    ]


def of_bits(setting: Setting, bits: int) -> list[Arm]:
    """Returns the arms of a setting whose models have so many bits when they are scored."""
    after, during = (
        Quantized(setting.task, Grid(bits), in_training=in_training)
        for in_training in (False, True)
    )
    here = dataclasses.replace(setting, name=f"{setting.name} at {bits} bits", task=after)
    make = probes.clips(probes.training(here), here)
    quantized = probes.clips(probes.training(here, task=during), here)
    limit, weights = probes.limits(setting), Range(0.03, 1.0)
    return [
        make(NO_CLIP, against=""),
        make(compression.GRADIENT, limit=limit),
        make(compression.WEIGHTS, weights=weights),
        quantized(IN_TRAINING),
        quantized(f"{IN_TRAINING}, weight clip", weights=weights, against=IN_TRAINING),
    ]


def figures(findings: Sequence[Finding]) -> Sequence[Figure]:
    """Returns the accuracy against the bits, a line an arm, a figure a network."""
    networks = dict.fromkeys(network(one) for one in findings)
    return [
        Figure(
            f"bits-{name}",
            f"{name}: accuracy with few bits",
            "bits of a weight",
            "accuracy, %",
            [
                line(arm, [one for one in findings if network(one) == name and one.arm.name == arm])
                for arm in dict.fromkeys(one.arm.name for one in findings)
            ],
            caption="Each arm is tuned for the accuracy that it has with these bits.",
        )
        for name in networks
    ]


def network(finding: Finding) -> str:
    """Returns the name of the setting that a finding is of, without the bits."""
    return finding.arm.setting.name.partition(" at ")[0]


def line(name: str, findings: Sequence[Finding]) -> Series:
    """Returns the accuracies of an arm against the bits, with their intervals."""
    bits = [int(one.arm.setting.name.split()[-2]) for one in findings]
    scores = [one.chosen.scores[np.isfinite(one.chosen.scores)] for one in findings]
    means, halves = 100 * np.array([estimate(one)[:2] for one in scores]).T
    return Series(name, np.array(bits), means, means - halves, means + halves)


STUDY = Study(
    name="quantized_training",
    question="Does a clip of the weights in training keep the accuracy at fewer bits, and as well "
    "as quantization in training does?",
    arms=arms,
    figures=figures,
    full=compression.STUDY.full,
    quick=compression.STUDY.quick,
)
