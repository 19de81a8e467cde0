"""How an arm is tuned: rounds of a quasi-random search, finalists, and a point with fresh seeds.

`search` only asks for trainings, and does not care where they come from: `compare` trains them, and
`verify` looks them up in the record.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from experiments.studies.arms import Arm, Design, Outcome, Point, Range

TUNING, FINALISTS, WIDTHS, TEST = 10_000, 20_000, 30_000, 0  # the first seed of each stage
EDGE = 0.1  # of what was tried, at either end
DIGITS = 3  # of a number that is tried
REACH = 1.5  # decades of a logarithmic number on either side of the chosen one


class Request(NamedTuple):
    """Trainings of an arm that are wanted: one for every seed at one point."""

    stage: str
    arm: Arm
    point: Point
    seeds: Sequence[int]


class Finding(NamedTuple):
    """What is known of an arm in the end.

    Attributes:
        arm: the arm.
        tried: its points of all rounds.
        chosen: the best of them by held-out data, with seeds that no choice has seen.
        slices: by tuned number: the others as chosen, and this one over a range.
        rounds: how many it took.
        edges: the tuned numbers that are chosen at the edge of what was tried.
    """

    arm: Arm
    tried: Sequence[Outcome]
    chosen: Outcome
    slices: Mapping[str, Sequence[Outcome]]
    rounds: int
    edges: Sequence[str]


Box = dict[str, Range]
Train = Callable[[Sequence[Request]], list[Outcome]]


def search(arms: Sequence[Arm], design: Design, train: Train) -> list[Finding]:
    """Returns what is found of every arm, all of them with the same budget.

    Args:
        arms: the arms, of one setting or several.
        design: the budget.
        train: returns the outcome of every request.
    """
    tried = run_rounds(arms, design, train)
    chosen = choose(arms, design, tried, train)
    slices = cut(arms, design, chosen, train)
    tests = train(
        [Request("test", arm, chosen[arm.title], seeds(TEST, design.seeds)) for arm in arms]
    )
    return [
        Finding(
            arm=arm,
            tried=tried[arm.title],
            chosen=test,
            slices=slices[arm.title],
            rounds=len(tried[arm.title]) // design.points,
            edges=find_edges(tried[arm.title], test),
        )
        for arm, test in zip(arms, tests, strict=True)
    ]


def seeds(first: int, count: int) -> range:
    """Returns the seeds of a stage."""
    return range(first, first + count)


def run_rounds(arms: Sequence[Arm], design: Design, train: Train) -> dict[str, list[Outcome]]:
    """Returns the outcomes of all rounds, by arm.

    Where the best point of an arm is at an edge, all arms of its setting have another round.
    """
    boxes: dict[str, Box] = {arm.title: dict(arm.box) for arm in arms}
    tried: dict[str, list[Outcome]] = {arm.title: [] for arm in arms}
    active = list(arms)
    for number in range(design.most_rounds):
        requests = [
            Request(f"round {number + 1}", arm, point, seeds(TUNING, design.tuning_seeds))
            for arm in active
            for point in propose(arm, boxes[arm.title], design.points, number)
        ]
        for outcome in train(requests):
            tried[outcome.arm.title].append(outcome)
        for arm in active:
            found = best(tried[arm.title])
            boxes[arm.title] = around(arm, boxes[arm.title], found.point)
        if number + 1 >= design.rounds:
            restless = {
                arm.setting.name
                for arm in active
                if find_edges(tried[arm.title], best(tried[arm.title]))
            }
            active = [arm for arm in active if arm.setting.name in restless]
        if not active:
            break
    return tried


def choose(
    arms: Sequence[Arm], design: Design, tried: Mapping[str, Sequence[Outcome]], train: Train
) -> dict[str, Point]:
    """Returns the chosen point of every arm: of its best ones, the best with further seeds."""
    requests, first = [], {}
    for arm in arms:
        ranked = sorted(tried[arm.title], key=lambda one: one.validation, reverse=True)
        first[arm.title] = ranked[: design.finalists]
        requests += [
            Request("finalists", arm, one.point, seeds(FINALISTS, design.final_seeds))
            for one in first[arm.title]
        ]
    again = iter(train(requests))
    return {
        title: best([join(one, next(again)) for one in outcomes]).point
        for title, outcomes in first.items()
    }


def join(one: Outcome, other: Outcome) -> Outcome:
    """Returns the trainings of two stages at one point as one outcome."""
    return one._replace(trainings=[*one.trainings, *other.trainings])


def cut(
    arms: Sequence[Arm], design: Design, chosen: Mapping[str, Point], train: Train
) -> dict[str, dict[str, list[Outcome]]]:
    """Returns the outcomes along every tuned number of every arm, with the others as chosen."""
    places = [
        (arm, name, value)
        for arm in arms
        for name in arm.box
        for value in spread(arm.box[name], chosen[arm.title][name], design.slice_points)
    ]
    outcomes = train(
        [
            Request(
                f"width of {name}",
                arm,
                {**chosen[arm.title], name: value},
                seeds(WIDTHS, design.slice_seeds),
            )
            for arm, name, value in places
        ]
    )
    slices = {arm.title: {name: [] for name in arm.box} for arm in arms}
    for (arm, name, _), outcome in zip(places, outcomes, strict=True):
        slices[arm.title][name].append(outcome)
    return slices


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns the best outcome by held-out data; the first of several."""
    return max(outcomes, key=lambda one: one.validation)


def propose(arm: Arm, box: Box, count: int, number: int) -> list[Point]:
    """Returns the points of a round: a part of Sobol's sequence, the same for all arms."""
    sequence = qmc.Sobol(len(box), scramble=False)
    if number:
        sequence.fast_forward(number * count)
    # Half a cell further, so that the first of the points is not a corner of the box.
    rows = (sequence.random(count) + 0.5 / count) % 1
    return [
        arm.point({name: at(box[name], share) for name, share in zip(box, row, strict=True)})
        for row in rows
    ]


def at(range: Range, share: float) -> float:
    """Returns the value at a share of the way through a range, in three digits."""
    low, high = to_scale(range, range.low), to_scale(range, range.high)
    return from_scale(range, low + share * (high - low))


def around(arm: Arm, box: Box, center: Point) -> Box:
    """Returns the box of the next round: smaller around what is well inside, else as wide."""
    return {name: recenter(box[name], center[name]) for name in box}


def recenter(range: Range, center: float) -> Range:
    """Returns a range around a value: half as wide if that is in its middle half, else as wide."""
    low, middle, high = (to_scale(range, number) for number in (range.low, center, range.high))
    inside = abs(middle - (low + high) / 2) <= (high - low) / 4
    half = (high - low) / (4 if inside else 2)
    ends = (from_scale(range, middle - half), from_scale(range, middle + half))
    # A number with a largest value is moved back from there, and not squeezed against it.
    return Range(*ends, range.log, range.least, range.most) if ends[0] < ends[1] else range


def spread(range: Range, center: float, count: int) -> list[float]:
    """Returns values around the chosen one: three decades of it, or all of a linear range."""
    if range.log:
        middle = math.log(center)
        ends = middle - REACH * math.log(10), middle + REACH * math.log(10)
    else:
        ends = range.low, range.high
    values = [from_scale(range, value) for value in np.linspace(*ends, count)]
    return sorted({*values, center})


def find_edges(tried: Sequence[Outcome], chosen: Outcome) -> list[str]:
    """Returns the tuned numbers that are at the edge of what was tried, and could go further.

    Where the clip never acts, its own numbers are as good as any beyond them.
    """
    found = []
    for name, range in chosen.arm.box.items():
        if chosen.clip_rate == 0 and name != "learning_rate":
            continue
        values = [one.point[name] for one in tried]
        numbers = min(values), chosen.point[name], max(values)
        low, value, high = (to_scale(range, number) for number in numbers)
        margin = EDGE * (high - low)
        below = value < low + margin and min(values) > range.least * (1 + EDGE)
        above = value > high - margin and max(values) < range.most * (1 - EDGE)
        if below or above:
            found.append(name)
    return found


def to_scale(range: Range, value: float) -> float:
    """Returns a value on the scale of its range."""
    return math.log(value) if range.log else value


def from_scale(range: Range, value: float) -> float:
    """Returns the value of a place on the scale, within what it can be, in three digits."""
    number = math.exp(value) if range.log else value
    return float(f"{min(max(number, range.least), range.most):.{DIGITS}g}")
