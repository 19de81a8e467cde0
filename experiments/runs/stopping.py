"""When a run stops before its last epoch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class EarlyStopping(NamedTuple):
    """The rules that end a run early, by the mean training loss of every epoch.

    Nothing else decides, so that a resumed run stops where an uninterrupted one does.

    Attributes:
        until_loss: the loss at which the run has converged, or None.
        patience: the epochs without a lower loss after which it stops, or None.
    """

    until_loss: float | None = None
    patience: int | None = None

    def reason(self, losses: Sequence[float]) -> str | None:
        """Returns why a run stops after epochs of these losses, or None where it goes on."""
        # A loss that is not finite has not converged, and is lower than none.
        known = [loss if math.isfinite(loss) else math.inf for loss in losses]
        if not known:
            return None
        if self.until_loss is not None and known[-1] <= self.until_loss:
            return f"the loss {known[-1]:.4g} is at most {self.until_loss:g}"
        lowest = min(known)
        waited = len(known) - 1 - known.index(lowest)
        if self.patience is not None and waited >= self.patience:
            return f"no loss below {lowest:.4g} in {waited} epochs"
        return None


NEVER = EarlyStopping()


def mean_loss(losses: Sequence[float] | np.ndarray) -> float:
    """Returns the mean of the losses of an epoch, in double precision."""
    return float(np.mean(np.asarray(losses, np.float64)))
