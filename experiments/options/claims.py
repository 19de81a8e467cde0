"""The options of all claims at once."""

import dataclasses
from pathlib import Path

from experiments.options.places import Places


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims(Places):
    """Try every claim about clips by the quick form of its study, and write one page.

    The same command continues where it was stopped. The quick forms are a first look; the full ones
    are made one by one by compare.

    Attributes:
        out: The folder of the page and of the studies.
        chunk: The number of trainings side by side.
    """

    out: Path = Path("runs/claims")
    chunk: int = 64

    def carry_out(self, command: str) -> None:
        """Trains what is missing, and prints the verdicts."""
        from experiments.studies import all_claims

        all_claims.run(self.out, self.folders, self.chunk, self.platform, command)
