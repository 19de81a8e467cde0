"""The options of a pilot."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.errors import check_name
from experiments.options.checks import check_count, check_learning_rate, check_seed
from experiments.options.places import Places
from experiments.processes import join

if TYPE_CHECKING:
    from experiments.studies.settings import Setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pilot(Places):
    """Measure the norms of a task's gradients without a clip, and suggest a limit for each method.

    Attributes:
        task: A setting of the studies, such as mnist or char_lm.
        seed: Decides the initial parameters and the order of the examples.
        epochs: Passes over the training data. Default: as many as in the studies.
        learning_rate: The learning rate. Default: that of the studies.
    """

    task: tyro.conf.Positional[str]
    seed: int = 0
    epochs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    learning_rate: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None

    def carry_out(self, command: str) -> None:
        """Trains without a clip, and prints the advice."""
        from experiments.studies import pilot

        setting = self.setting()
        with join(platform=self.platform):
            print(pilot.pilot_setting(setting, self.seed, self.folders))

    def setting(self) -> "Setting":
        """Returns the setting that is trained."""
        from experiments.studies.settings import SETTINGS

        check_name(self.task, SETTINGS, "task")
        check_seed(self.seed)
        changes = {}
        if self.epochs is not None:
            check_count("epochs", self.epochs)
            changes["epochs"] = self.epochs
        if self.learning_rate is not None:
            check_learning_rate(self.learning_rate)
            changes["learning_rate"] = self.learning_rate
        return dataclasses.replace(SETTINGS[self.task], **changes)
