"""The page of a study, from the findings alone: answer, tables, figures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.pages.report import Cell, Column, Page, Table
from experiments.pages.series import Figure, Heat, Series
from experiments.studies.arms import Arm
from experiments.studies.effects import (
    Effect,
    Width,
    by_setting,
    estimate,
    find_effects,
    find_width,
)
from experiments.studies.search import Finding
from experiments.studies.study import Study

RATE = "learning_rate"
CELLS = 40  # of a heat map, each way


def page(study: Study, findings: Sequence[Finding], details: Mapping[str, str]) -> Page:
    """Returns the page of a study."""
    effects = find_effects(findings)
    answer = study.answer(findings) if study.answer else verdict(effects, study.lead)
    return Page(
        title=study.name.replace("_", " "),
        question=study.question,
        answer="\n".join([answer, *caveats(findings)]),
        tables=[*tables(findings, effects), *study.tables(findings)],
        figures=[*figures(findings, effects), *study.figures(findings)],
        details=details,
    )


# The answer


def verdict(effects: Sequence[Effect], lead: str = "") -> str:
    """Returns, a line a baseline, whether an arm differs from it, and by how much.

    Args:
        effects: of a page.
        lead: the name of the baseline that comes first.
    """
    groups: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        arm = effect.finding.arm
        groups.setdefault((arm.setting.name, arm.against), []).append(effect)
    ordered = sorted(groups, key=lambda group: group[1] != lead)
    return "\n".join(group_verdict(groups[group]) for group in ordered)


def group_verdict(effects: Sequence[Effect]) -> str:
    """Returns the verdict on the arms of one baseline: on the best of them by held-out data."""
    first = max(effects, key=lambda one: one.finding.chosen.validation)
    better = sum(one.seen and one.difference > 0 for one in effects)
    worse = sum(one.seen and one.difference < 0 for one in effects)
    words = {(True, True): "Yes", (True, False): "No, it is worse"}
    word = words.get((first.seen, first.difference > 0), "No difference seen")
    sentences = [f"{word}, on {first.finding.arm.setting.name}: {effect_in_words(first)}"]
    if len(effects) > 1:
        base = first.baseline.arm.name
        sentences.append(
            f"Of {len(effects)} arms, {better} are better than {base}, {worse} are worse."
        )
    return " ".join([*sentences, *width_in_words(first)])


def effect_in_words(effect: Effect) -> str:
    """Returns an effect as a sentence."""
    arm, base = effect.finding, effect.baseline
    reached = f"{arm.arm.name} reaches {percent(arm)}, {base.arm.name} {percent(base)}"
    if effect.pairs < 2:
        return f"{reached}; too few seeds are left to compare ({failures([arm, base])})."
    return (
        f"{reached} ({100 * effect.difference:+.2f} points, 95 % interval {100 * effect.low:+.2f} "
        f"to {100 * effect.high:+.2f}, {effect.pairs} seeds; a difference of "
        f"{100 * effect.detectable:.1f} would have been seen)."
    )


def width_in_words(effect: Effect) -> list[str]:
    """Returns how wide the usable learning rates of an arm and its baseline are, in a sentence."""
    widths = [rate_width(one) for one in (effect.finding, effect.baseline)]
    if None in widths:
        return []
    arm, base = (width_text(width) for width in widths if width is not None)
    return [
        f"Learning rates within a point of its own best: {arm} decades with "
        f"{effect.finding.arm.name}, {base} with {effect.baseline.arm.name}."
    ]


def caveats(findings: Sequence[Finding]) -> list[str]:
    """Returns what the reader has to know before the answer is believed."""
    lines = []
    if failed := [one for one in findings if one.chosen.failed]:
        lines.append(f"Seeds that diverged or learned nothing: {failures(failed)}.")
    if edges := [
        f"{one.arm.title} ({', '.join(name_of(one.arm, name) for name in one.edges)})"
        for one in findings
        if one.edges
    ]:
        lines.append(f"Best at the edge of what was tried, after all rounds: {'; '.join(edges)}.")
    if few := {len(one.chosen.trainings) for one in findings if len(one.chosen.trainings) < 6}:
        lines.append(
            f"With {min(few)} seeds, no permutation test can reach 5 %: a first look only."
        )
    return lines


def failures(findings: Sequence[Finding]) -> str:
    """Returns how many seeds of each arm failed."""
    return "; ".join(
        f"{one.chosen.failed} of {len(one.chosen.trainings)} with {one.arm.title}"
        for one in findings
    )


def percent(finding: Finding) -> str:
    """Returns the mean score of an arm."""
    unit = finding.arm.setting.scored.rpartition(", ")[2]
    return (
        "nothing" if math.isnan(finding.chosen.mean) else f"{100 * finding.chosen.mean:.2f} {unit}"
    )


def width_text(width: Width) -> str:
    """Returns a width in decades, with a sign where it may be more."""
    return f"{'≥ ' if width.open else ''}{width.decades:.1f}"


def rate_width(finding: Finding) -> Width | None:
    """Returns the width of the usable learning rates."""
    return find_width(finding.slices[RATE], RATE) if RATE in finding.slices else None


def name_of(arm: Arm, name: str) -> str:
    """Returns what a number of an arm is called on the page."""
    return arm.labels.get(name, name.rpartition(".")[2]).replace("_", " ")


# Tables


def tables(findings: Sequence[Finding], effects: Sequence[Effect]) -> list[Table]:
    """Returns, setting by setting, the effects, the widths and the chosen points."""
    made = []
    for setting, here in by_setting(findings).items():
        known = {one.finding.arm.name: one for one in effects if one.finding in here}
        ranked = sorted(here, key=lambda one: -one.chosen.validation)
        made += [
            effect_table(setting, ranked, known),
            Table(
                f"widths-{setting}",
                f"{setting}: decades within one point of its own best",
                [Column("arm"), Column("learning rate"), Column("its own number"), Column("")],
                [width_row(one) for one in ranked],
            ),
            Table(
                f"points-{setting}",
                f"{setting}: the chosen points",
                [
                    Column("arm"),
                    Column("point"),
                    Column("at an edge"),
                    Column("rounds", "{:d}"),
                    Column("steps clipped, %", "{:.1f}"),
                    Column(f"held out: {here[0].arm.setting.scored}", "{:.2f}"),
                    Column("seconds a training", "{:.3g}"),
                ],
                [point_row(one) for one in ranked],
            ),
        ]
    return made


def effect_table(setting: str, findings: Sequence[Finding], effects: Mapping[str, Effect]) -> Table:
    """Returns the effects, a row an arm; a column that is the same in all rows is in the title."""
    seeds = len(findings[0].chosen.trainings)
    baselines = {effect.baseline.arm.name for effect in effects.values()}
    title = f"{setting}: differences to {baselines.pop()}" if len(baselines) == 1 else setting
    columns = [
        Column("arm"),
        Column(findings[0].arm.setting.scored, "{:.2f}"),
        Column("difference", "{:+.2f}"),
        Column("95 %"),
        Column("q", "{:.3g}"),
        Column("failed", "{:d}"),
    ]
    rows = [effect_row(one, effects.get(one.arm.name)) for one in findings]
    if baselines:
        columns.append(Column("compared with"))
        rows = [[*row, one.arm.against or None] for row, one in zip(rows, findings, strict=True)]
    return Table(f"effects-{setting}", f"{title} ({seeds} seeds)", columns, rows)


def effect_row(finding: Finding, effect: Effect | None) -> list[Cell]:
    """Returns an arm as a row of the effects; a baseline has no difference."""
    score = number(100 * finding.chosen.mean)
    failed = finding.chosen.failed
    if effect is None:
        return [finding.arm.name, score, None, None, None, failed]
    between = f"{100 * effect.low:+.2f} to {100 * effect.high:+.2f}" if effect.pairs > 1 else None
    difference = number(100 * effect.difference)
    return [finding.arm.name, score, difference, between, number(effect.q), failed]


def width_row(finding: Finding) -> list[Cell]:
    """Returns an arm as a row of the widths."""
    cells: list[Cell] = []
    rest = [name for name in finding.slices if name != RATE]
    for name in [RATE, *rest][:2]:
        width = find_width(finding.slices[name], name) if name in finding.slices else None
        if width is None:
            cells.append(None)
        elif math.isnan(width.decades):
            cells.append(f"{width.low:.3g} to {width.high:.3g}")
        else:
            cells.append(f"{width_text(width)} ({width.low:.2g} to {width.high:.2g})")
    cells += [None] * (2 - len(cells))
    return [
        finding.arm.name,
        *cells,
        ", ".join(name_of(finding.arm, name) for name in rest) or None,
    ]


def point_row(finding: Finding) -> list[Cell]:
    """Returns an arm as a row of the chosen points."""
    arm, chosen = finding.arm, finding.chosen
    point = ", ".join(f"{name_of(arm, name)} {chosen.point[name]:.3g}" for name in arm.box)
    seconds = float(np.mean([one.seconds for one in chosen.trainings]))
    return [
        arm.name,
        point,
        ", ".join(name_of(arm, name) for name in finding.edges) or None,
        finding.rounds,
        number(100 * chosen.clip_rate),
        number(100 * chosen.validation),
        number(seconds),
    ]


def number(value: float) -> float | None:
    """Returns a number as a table has it: an empty cell where it is not finite."""
    return value if math.isfinite(value) else None


# Figures


def figures(findings: Sequence[Finding], effects: Sequence[Effect]) -> list[Figure]:
    """Returns, setting by setting, effects, accuracy along each number, and heat maps."""
    made = []
    for setting, here in by_setting(findings).items():
        known = [one for one in effects if one.finding in here]
        made += [effect_figure(setting, known), accuracy_figure(setting, here)]
        names = dict.fromkeys(name for one in here for name in one.slices)
        made += [slice_figure(setting, here, name) for name in names]
        made += [heat_figure(one) for one in here if {RATE, "limit"} <= set(one.arm.box)]
    return made


def effect_figure(setting: str, effects: Sequence[Effect]) -> Figure:
    """Returns the figure of the differences to the baseline, a row an arm."""
    known = sorted((one for one in effects if one.pairs > 1), key=lambda one: -one.difference)
    series = [
        point_series(one.finding.arm.name, one.difference, one.low, one.high) for one in known
    ]
    title = f"{setting}: differences to the baseline"
    caption = "Mean over the seeds that failed in neither, and its 95 % interval."
    label = f"difference: {effects[0].finding.arm.setting.scored}" if effects else "difference"
    return Figure(f"effects-{setting}", title, "", label, series, caption=caption)


def accuracy_figure(setting: str, findings: Sequence[Finding]) -> Figure:
    """Returns the figure of the accuracies at the chosen points, a row an arm."""
    ranked = sorted(findings, key=lambda one: -one.chosen.validation)
    series = []
    for one in ranked:
        scores = one.chosen.scores
        mean, half, _ = estimate(scores[np.isfinite(scores)])
        series.append(point_series(one.arm.name, mean, mean - half, mean + half))
    title = f"{setting}: each arm at its chosen point"
    caption = "Mean of the seeds that did not fail, and its 95 % interval."
    label = ranked[0].arm.setting.scored
    return Figure(f"accuracy-{setting}", title, "", label, series, caption=caption)


def slice_figure(setting: str, findings: Sequence[Finding], name: str) -> Figure:
    """Returns the figure of held-out accuracy along a number, a line an arm."""
    series = []
    for one in findings:
        if name in one.slices:
            x = np.array([outcome.point[name] for outcome in one.slices[name]])
            y = np.array([100 * outcome.validation for outcome in one.slices[name]])
            series.append(Series(one.arm.name, x, y))
    labels = {name_of(one.arm, name) for one in findings if name in one.arm.box}
    label = labels.pop() if len(labels) == 1 else name_of(findings[0].arm, name)
    log = all(one.arm.box[name].log for one in findings if name in one.arm.box)
    return Figure(
        f"{name}-{setting}",
        f"{setting}: {findings[0].arm.setting.scored} along the {label}",
        f"{label} at its peak",
        f"held out: {findings[0].arm.setting.scored}",
        series,
        log_x=log,
        caption="All else as chosen; a seed that failed counts as having learned nothing.",
    )


def heat_figure(finding: Finding) -> Figure:
    """Returns the heat map of held-out accuracy over learning rate and limit, with its ridge."""
    outcomes = [*finding.tried, *(one for cut in finding.slices.values() for one in cut)]
    rates, limits = (np.array([one.point[name] for one in outcomes]) for name in (RATE, "limit"))
    arm = finding.arm
    log = arm.box["limit"].log
    scores = np.array([100 * one.validation for one in outcomes])
    places = np.stack([np.log10(rates), np.log10(limits) if log else limits], 1)
    x, y, z = interpolate(places, scores)
    heat = Heat(10**x, 10**y if log else y, list(z))
    ridge = heat.y[z.argmax(0)]
    return Figure(
        f"heat-{arm.slug}",
        f"{arm.title}: accuracy over learning rate and {name_of(arm, 'limit')}",
        "learning rate",
        name_of(arm, "limit"),
        [
            Series("trained", rates, limits, mode="markers"),
            Series("best of each learning rate", heat.x, ridge, mode="lines"),
        ],
        log_x=True,
        log_y=log,
        heat=heat,
        caption="Held-out accuracy, %, interpolated between the points that were trained.",
    )


def interpolate(places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns x, y and the values on a grid, of values f64[n] at scattered places f64[n, 2].

    Each is a mean of all values, in which a near one counts more: by Shepard's weights.
    """
    low, high = places.min(0), places.max(0)
    x, y = (np.linspace(low[i], high[i], CELLS) for i in (0, 1))
    cells = np.stack(np.meshgrid(x, y), -1)
    squared = np.sum(((cells[..., None, :] - places) / (high - low)) ** 2, -1)
    weights = 1 / (squared**2 + 1e-9)
    return x, y, weights @ values / weights.sum(-1)


def point_series(name: str, value: float, low: float, high: float) -> Series:
    """Returns one row of a figure: a score and the ends of its interval, in percent."""
    y, below, above = (np.array([100 * number]) for number in (value, low, high))
    return Series(name, np.array([name]), y, below, above, mode="markers")
