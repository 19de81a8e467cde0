"""The page of a study: its tables, its figures, and the answer to its question."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.pages.report import Column, Page, Table
from experiments.pages.series import Figure, Mode, Series, norm_figure
from experiments.studies.study import Outcome, Study, best, by_setting, sort_key

STEP_BY_STEP = 6  # outcomes whose every step is drawn


def page(study: Study, outcomes: Sequence[Outcome], details: Mapping[str, str]) -> Page:
    """Returns the page of a study."""
    chosen = best(outcomes)
    shown = interleave(sort_outcomes(chosen))[:STEP_BY_STEP]
    figures = [*study.figures(outcomes), *(step_figure(outcome) for outcome in shown)]
    return Page(
        title=study.name.replace("_", " "),
        question=study.question,
        answer=study.answer(outcomes),
        tables=[
            table("best", "Each at the best of its own grid", sort_outcomes(chosen)),
            *study.tables(outcomes),
            table("all", "Every point of every grid", outcomes),
        ],
        figures=figures,
        details=details,
    )


def sort_outcomes(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Returns outcomes by setting, the best first."""
    return sorted(outcomes, key=lambda one: (one.arm.setting.name, -sort_key(one.mean)))


def interleave(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Returns the first outcome of every setting, then the second of every setting, and so on."""
    rounds = itertools.zip_longest(*by_setting(outcomes).values())
    return [outcome for turn in rounds for outcome in turn if outcome is not None]


def table(name: str, title: str, outcomes: Sequence[Outcome]) -> Table:
    """Returns outcomes as a table, a row each."""
    columns = [
        Column("setting"),
        Column("clip"),
        Column("tuned"),
        Column("value", "{:.4g}"),
        Column("edge of its grid"),
        Column("learning rate", "{:.3g}"),
        Column("accuracy, %", "{:.2f}"),
        Column("± 95 %", "{:.2f}"),
        Column("validation, %", "{:.2f}"),
        Column("last loss", "{:.4f}"),
        Column("steps clipped, %", "{:.1f}"),
        Column("seeds failed, %", "{:.0f}"),
        Column("seeds", "{:d}"),
    ]
    return Table(name, title, columns, [row(outcome) for outcome in outcomes])


def row(outcome: Outcome) -> list[str | float | int | None]:
    """Returns an outcome as the row of a table; a cell that is not a number is empty."""
    arm, point = outcome.arm, outcome.point
    numbers = [
        100 * outcome.mean,
        100 * outcome.half_width,
        100 * outcome.validation,
        outcome.last_loss,
        100 * outcome.clip_rate,
        100 * outcome.failed,
    ]
    return [
        arm.setting.name,
        arm.name,
        arm.knob,
        finite_or_none(point["limit"]) if arm.knob else None,
        "edge" if outcome.at_edge else None,
        *(finite_or_none(number) for number in (point["learning_rate"], *numbers)),
        len(outcome.scores),
    ]


def finite_or_none(number: float) -> float | None:
    """Returns a number as a table has it: an empty cell where it is not finite."""
    return number if math.isfinite(number) else None


def comparison_figure(outcomes: Sequence[Outcome], name: str, title: str) -> Figure:
    """Returns the figure of mean accuracies with their 95 % intervals, a row an arm."""
    series = [
        interval_series(setting, np.array([one.arm.name for one in here]), here, "markers")
        for setting, here in by_setting(sort_outcomes(outcomes)).items()
    ]
    return Figure(
        name, title, "", "accuracy, %", series, caption="Mean of the seeds, 95 % interval."
    )


def knob_figure(outcomes: Sequence[Outcome], name: str, title: str, x: str) -> Figure:
    """Returns the figure of accuracy against the tuned number, a line an arm."""
    series = []
    for name_of_arm in dict.fromkeys(label(one, outcomes) for one in outcomes):
        here = [one for one in outcomes if label(one, outcomes) == name_of_arm]
        series.append(
            interval_series(name_of_arm, np.array([one.point["limit"] for one in here]), here)
        )
    caption = "Mean of the seeds; the band is its 95 % interval."
    return Figure(name, title, x, "accuracy, %", series, log_x=True, caption=caption)


def epoch_figure(outcomes: Sequence[Outcome], name: str, title: str) -> Figure:
    """Returns the figure of the mean accuracy after every epoch, a line an outcome."""
    series = []
    for outcome in outcomes:
        scores = 100 * np.asarray(outcome.history.score, np.float64)
        epochs = np.arange(1, scores.shape[1] + 1)
        series.append(Series(label(outcome, outcomes), epochs, scores.mean(0)))
    return Figure(name, title, "epoch", "accuracy, %", series)


def label(outcome: Outcome, outcomes: Sequence[Outcome]) -> str:
    """Returns the name of an outcome's arm, with its setting where the outcomes have several."""
    several = len({one.arm.setting.name for one in outcomes}) > 1
    return outcome.arm.title if several else outcome.arm.name


def step_figure(outcome: Outcome) -> Figure:
    """Returns the figure of norm and limit, step by step, of the first seed."""
    columns = (outcome.history.norm, outcome.history.limit, outcome.history.clipped)
    arm, limit = outcome.arm, outcome.point["limit"]
    title = f"{arm.title}, {arm.knob} {limit:.4g}" if arm.knob else arm.title
    return norm_figure(
        f"time-{arm.slug}",
        f"Norm and limit: {title}",
        *(np.asarray(column, np.float64)[0].ravel() for column in columns),
    )


def interval_series(
    name: str, x: np.ndarray, outcomes: Sequence[Outcome], mode: Mode = "lines+markers"
) -> Series:
    """Returns the mean accuracies of outcomes with their 95 % intervals."""
    mean = 100 * np.array([outcome.mean for outcome in outcomes])
    half = 100 * np.array([outcome.half_width for outcome in outcomes])
    return Series(name, x, mean, mean - half, mean + half, mode=mode)
