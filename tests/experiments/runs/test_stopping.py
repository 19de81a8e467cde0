import math

import numpy as np
import pytest

from experiments.runs.stopping import EarlyStopping, mean_loss


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([], None),
        ([2.0, 1.0, 0.51], None),
        ([2.0, 0.5], "the loss 0.5 is at most 0.5"),
        ([2.0, math.nan], None),
        ([2.0, -math.inf], None),
        ([1.0, 1.0, 1.1], None),
        ([1.0, 1.0, 1.1, 1.0], "no loss below 1 in 3 epochs"),
        ([1.0, math.nan, math.nan, math.nan], "no loss below 1 in 3 epochs"),
        ([math.nan, math.nan, 3.0, 2.0], None),
        ([math.nan] * 4, "no loss below inf in 3 epochs"),
    ],
)
def test_a_run_stops_by_its_losses(losses, reason):
    assert EarlyStopping(until_loss=0.5, patience=3).reason(losses) == reason


def test_nothing_stops_a_run_without_a_rule():
    assert EarlyStopping().reason([1.0, 0.0, math.nan] * 100) is None


def test_the_mean_does_not_round_and_does_not_overflow():
    assert mean_loss(np.full(3, 3e38, np.float32)) == float(np.float32(3e38))
    assert math.isnan(mean_loss([1.0, math.nan]))
