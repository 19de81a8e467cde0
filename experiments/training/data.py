"""The data of a training."""

from typing import Any, NamedTuple

import jax


class Data(NamedTuple):
    """Training, test and validation data: trees of arrays, one example a row.

    Attributes:
        train: the training examples.
        test: the examples by which results are reported.
        validation: the held-out examples by which points are selected, or None.
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
