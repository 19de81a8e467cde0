"""The options of a list of what there is."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class List:
    """List the studies: what each asks, and where there are results of it."""

    def carry_out(self, command: str) -> None:
        """Prints the list."""
        from experiments.studies import listing

        print("\n".join(listing.lines(Path("runs"))))
