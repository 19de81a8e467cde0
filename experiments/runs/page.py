"""The page of a run, and its figures."""

import json

import numpy as np

from experiments.errors import BadInput
from experiments.pages.report import Page
from experiments.pages.series import Figure, Series, loss_figure, norm_figure
from experiments.runs import exported
from experiments.runs.folder import Metrics, Run


def page(run: Run) -> Page:
    """Returns the page of a run."""
    metrics, config = run.metrics(), run.config
    if not len(metrics.score):
        raise BadInput(
            f"{run.folder} has no finished epoch: continue it with --resume {run.folder}"
        )
    result = run.result() or {}
    task, clip = config.get("task"), config.get("clip", "the clip of every example")
    return Page(
        title=f"{task}, {clip}",
        question=f"What did {clip} do?",
        answer=f"{100 * metrics.score[-1]:.2f} % after {len(metrics.score)} epochs; "
        f"{100 * np.mean(metrics.clipped > 0):.1f} % of the steps were clipped."
        + (f"\nIt stopped {result['stopped']}." if "stopped" in result else ""),
        tables=[exported.table(exports)] if (exports := exported.read(run)) else [],
        figures=make_figures(metrics),
        details={
            "command": str(config.get("command", "")),
            "config": json.dumps(config, indent=2),
            "versions": json.dumps(run.versions, indent=2),
        },
    )


def make_figures(metrics: Metrics) -> list[Figure]:
    """Returns the norm and its limit, the loss, and the accuracy of a run."""
    epochs = np.arange(1, len(metrics.score) + 1)
    score = Series("on the test data", epochs, 100 * metrics.score)
    return [
        norm_figure("norm", "Norm and limit", metrics.norm, metrics.limit, metrics.clipped),
        loss_figure(metrics.loss),
        Figure("accuracy", "Accuracy", "epoch", "accuracy, %", [score]),
    ]
