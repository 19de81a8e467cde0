"""Options that say where a command computes, and where its data is."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
Coordinator = Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")]
Platform = Annotated[Literal["cpu", "gpu", "tpu"] | None, tyro.conf.arg(metavar="{cpu,gpu,tpu}")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where a command computes, and where its data is.

    Attributes:
        platform: Where to compute. Default: JAX's choice.
        mnist_dir: The folder with the four original files of MNIST. Default: the repository's own.
        fashion_mnist_dir: The folder with those of Fashion-MNIST. Default: they are downloaded.
    """

    platform: Platform = None
    mnist_dir: Folder = None
    fashion_mnist_dir: Folder = None

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of the original files, by data set."""
        named = {"mnist": self.mnist_dir, "fashion_mnist": self.fashion_mnist_dir}
        return {name: folder for name, folder in named.items() if folder is not None}


def command_line(words: list[str]) -> str:
    """Returns the command of this program, by this interpreter, with these words."""
    return shlex.join([sys.executable, "-m", "experiments", *words])
