"""One file a question: its arms, its figures, and what they say."""

import importlib

from experiments.errors import BadInput
from experiments.study import Study
from experiments.typed import nearest

NAMES = (
    "schedules",
    "methods",
    "sensitivity",
    "spikes",
    "temporal_order",
    "placement",
    "per_example",
)


def study(name: str) -> Study:
    """Returns the study of a name."""
    if name not in NAMES:
        raise BadInput(
            f"{name} is no study{nearest(name, NAMES)}; the studies are {', '.join(NAMES)}"
        )
    return importlib.import_module(f"experiments.studies.{name}").STUDY
