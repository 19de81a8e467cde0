"""Sensitivity: over how many decades of its limit, and of the learning rate, a method works."""

import dataclasses
from collections.abc import Sequence

from experiments.studies.arms import FULL, QUICK, Arm
from experiments.studies.effects import find_width
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.page import rate_width, width_text
from experiments.studies.search import Finding
from experiments.studies.settings import SETTINGS
from experiments.studies.study import Study

METHODS = (
    "clip_by_global_norm",
    "smooth_clip_by_global_norm",
    "normalize_by_global_norm",
    "clip_by_leaf_norm",
    "clip_by_unit_norm",
    "clip_by_value",
    "u_clip",
)


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip, and the methods with a limit."""
    setting = SETTINGS["mnist_deep"]
    chosen = METHODS if full else METHODS[:4]
    return [unclipped_arm(setting), *(make_arm(method, setting) for method in chosen)]


def tolerance(findings: Sequence[Finding]) -> str:
    """Returns over how many decades each method stays within a point of its best."""
    lines = []
    for finding in findings:
        rate = rate_width(finding)
        limit = find_width(finding.slices["limit"], "limit") if "limit" in finding.slices else None
        parts = [
            f"{width_text(width)} of the {name}"
            for name, width in (("limit", limit), ("learning rate", rate))
            if width is not None
        ]
        lines.append((limit.decades if limit else -1.0, f"{finding.arm.name} {', '.join(parts)}"))
    ranked = [text for _, text in sorted(lines, key=lambda pair: -pair[0])]
    return f"Decades within one point of its own best: {'; '.join(ranked)}."


STUDY = Study(
    name="sensitivity",
    question="Which method forgives a bad limit, or a bad learning rate?",
    arms=arms,
    answer=tolerance,
    # More of what the question is about, and less of everything else.
    full=dataclasses.replace(FULL, slice_points=25, slice_seeds=8),
    quick=dataclasses.replace(QUICK, slice_points=7, slice_seeds=2),
)
