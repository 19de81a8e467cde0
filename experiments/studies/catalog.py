"""The studies, by name."""

import importlib

from experiments.errors import check_name
from experiments.studies.study import Study

NAMES = (
    "schedules",
    "methods",
    "sensitivity",
    "spikes",
    "temporal_order",
    "placement",
    "per_example",
)


def find(name: str) -> Study:
    """Returns the study of a name."""
    check_name(name, NAMES, "study")
    return importlib.import_module(f"experiments.studies.{name}").STUDY
