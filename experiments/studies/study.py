"""A study: one question, the arms that answer it, and what is made of what they came to."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from experiments.pages.report import Table
from experiments.pages.series import Figure
from experiments.studies.arms import FULL, QUICK, Arm, Design
from experiments.studies.search import Finding
from experiments.training.train import History


@dataclasses.dataclass(frozen=True)
class Study:
    """One question, in a file of its own.

    Attributes:
        name: how it is asked for.
        question: the heading of its page.
        arms: its arms, of the quick form or the full one.
        measures: what it measures of a training besides the score, by name: functions of the
            `History` of one training.
        lead: the name of the baseline of the comparison that the question asks for, which the
            page gives first.
        answer: the first lines of its page; None: the effects in words.
        tables: its own tables, beside those that every page has.
        figures: its own figures, beside those that every page has.
        pictures: what was probed of the first seed of each arm, to look at. They do not follow from
            the record, and stand on the page of the folder that was trained in.
        full: the budget of its full form.
        quick: that of its quick form.
    """

    name: str
    question: str
    arms: Callable[[bool], Sequence[Arm]]
    measures: Mapping[str, Callable[[History], float]] = dataclasses.field(default_factory=dict)
    lead: str = ""
    answer: Callable[[Sequence[Finding]], str] | None = None
    tables: Callable[[Sequence[Finding]], Sequence[Table]] = lambda findings: ()
    figures: Callable[[Sequence[Finding]], Sequence[Figure]] = lambda findings: ()
    pictures: Callable[[Sequence[Finding]], Sequence[Figure]] = lambda findings: ()
    full: Design = FULL
    quick: Design = QUICK

    def design(self, full: bool) -> Design:
        """Returns the budget of a form."""
        return self.full if full else self.quick
