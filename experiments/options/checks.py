"""What the options of several commands have to be."""

import math

from experiments.errors import BadInput


def check_count(name: str, value: int) -> None:
    """Raises `BadInput` unless a number of things is 1 or more."""
    if value < 1:
        raise BadInput(f"{flag(name)} is {value}: give 1 or more")


def check_positive(name: str, value: float) -> None:
    """Raises `BadInput` unless a number is positive and finite."""
    if not 0 < value < math.inf:
        raise BadInput(f"{flag(name)} is {value}: give a number above 0")


def check_learning_rate(value: float) -> None:
    """Raises `BadInput` unless a learning rate is 0 or more, and finite."""
    if not 0 <= value < math.inf:
        raise BadInput(f"--learning-rate is {value}: give a number of 0 or more")


def check_seed(value: int) -> None:
    """Raises `BadInput` unless a seed is an int32."""
    if not -(2**31) <= value < 2**31:
        raise BadInput(f"--seed is {value}: give a number of 32 bits")


def flag(field: str) -> str:
    """Returns how a field is spelled on the command line."""
    return f"--{field.replace('_', '-')}"
