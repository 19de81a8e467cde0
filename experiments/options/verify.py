"""The options of a verification."""

import dataclasses
from typing import Annotated

import tyro

from experiments.errors import BadInput
from experiments.options.places import Places
from experiments.processes import join


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify(Places):
    """Compute the page of a study anew from its record, and train a random part of it anew.

    Attributes:
        study: The study, for its results in the repository, or the folder of a comparison.
        retrain: The number of chunks to train anew; 0 trains nothing.
        seed: Decides which chunks. Default: by chance.
    """

    study: tyro.conf.Positional[str]
    retrain: int = 1
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None

    def carry_out(self, command: str) -> None:
        """Prints what holds; what does not is an error."""
        from experiments.studies import verify

        if self.retrain < 0:
            raise BadInput(f"--retrain is {self.retrain}: give 0 or more")
        with join(platform=self.platform):
            verify.run(self.study, self.retrain, self.seed, self.folders)
