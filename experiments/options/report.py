"""The options of a report."""

import dataclasses
import webbrowser
from pathlib import Path

import tyro

from experiments.errors import BadInput
from experiments.options.places import Folder


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the page of a study or a run again: HTML, figures as PNG and SVG, tables as CSV.

    Of a folder of studies, write the summary of their pages: README.md, and the tables of each.

    Attributes:
        folder: The folder of a study or of a run, or a folder of studies.
        open: Open the page in a browser.
        out: Where to write. Default: into that folder.
    """

    folder: tyro.conf.Positional[Path]
    open: bool = False
    out: Folder = None

    def carry_out(self, command: str) -> None:
        """Writes the page, and prints its path."""
        from experiments.pages import report, summary
        from experiments.runs.folder import Run
        from experiments.runs.page import page

        if (self.folder / "page.json").is_file():
            found = report.load(self.folder)
        elif (self.folder / "metrics.jsonl").is_file():
            found = page(Run(self.folder))
        elif any(self.folder.glob("*/page.json")):
            print(f"The summary is {summary.keep(self.folder)}")
            return
        else:
            raise BadInput(
                f"{self.folder} is not the folder of a study or of a run: it has no page.json"
            )
        path = report.write(found, self.out or self.folder)
        print(f"The page is {path}")
        if self.open:
            webbrowser.open(path.resolve().as_uri())
