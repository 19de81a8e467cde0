"""Paired timing: two sides alternate in one process; the figure is the median of the ratios."""

import statistics
import time
from collections.abc import Callable


def ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 21) -> float:
    """Returns the median over the rounds of the time of `ours` over that of `theirs`."""
    for side in (ours, theirs):
        side()
    ratios = []
    for turn in range(rounds):
        order = (ours, theirs) if turn % 2 else (theirs, ours)
        taken = {side: seconds(side) for side in order}
        ratios.append(taken[ours] / taken[theirs])
    return statistics.median(ratios)


def seconds(side: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start
