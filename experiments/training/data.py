"""What a training learns from."""

from typing import Any, NamedTuple

import jax


class Data(NamedTuple):
    """What a task learns from and what it is scored on: trees of arrays, one example a row.

    Attributes:
        train: what the gradients are of.
        test: what results are told by.
        validation: what choices are made by; None where none are made.
    """

    train: Any
    test: Any
    validation: Any = None


def hold_out(data: Data, share: float) -> Data:
    """Returns the data with the last share of the training examples held out, for validation."""
    kept = round((1 - share) * len(jax.tree.leaves(data.train)[0]))
    train, validation = (
        jax.tree.map(lambda column, part=part: column[part], data.train)
        for part in (slice(kept), slice(kept, None))
    )
    return Data(train, data.test, validation)
