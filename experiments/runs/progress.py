"""Progress reports: a bar on a terminal, a line an epoch elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import rich.console
import rich.progress

from experiments.training.train import History

Report = Callable[[int, History], None]
Share = Callable[[np.ndarray], str]


def clip_rate(clipped: np.ndarray) -> str:
    """Returns the share of the steps in which any block was clipped."""
    return f"clip rate {100 * np.mean(clipped > 0):.1f} %"


def examples_clipped(clipped: np.ndarray) -> str:
    """Returns the mean share of the examples of a batch that were clipped."""
    return f"examples clipped {100 * np.mean(clipped):.1f} %"


@contextlib.contextmanager
def report(
    epochs: int,
    done: int = 0,
    console: rich.console.Console | None = None,
    share: Share = clip_rate,
) -> Iterator[Report]:
    """Yields the function to call after every epoch, with its number and its history.

    Args:
        epochs: the number of epochs.
        done: the number of epochs that an earlier process has done.
        console: where to; by default the standard output.
        share: describes the shares f32[steps] that were clipped.
    """
    console = console or rich.console.Console()
    if not console.is_terminal:
        yield lambda epoch, history: print(
            f"epoch {epoch}/{epochs}  {summary(history, share)}", flush=True
        )
        return
    with make_bar("epoch", console) as bar:
        task = bar.add_task("compiling", total=epochs, completed=done)

        def advance(epoch: int, history: History) -> None:
            bar.update(task, completed=epoch, description=summary(history, share), refresh=True)

        yield advance


def make_bar(unit: str, console: rich.console.Console) -> rich.progress.Progress:
    """Returns a bar that counts units and shows the time left."""
    return rich.progress.Progress(
        rich.progress.TextColumn(f"{unit} {{task.completed}}/{{task.total}}"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        speed_estimate_period=600,  # seconds; one step of either may take minutes
    )


def summary(history: History, share: Share = clip_rate) -> str:
    """Returns one epoch in a line."""
    norms = np.asarray(history.norm)
    return (
        f"loss {np.mean(np.asarray(history.loss)):.4f}  "
        f"accuracy {100 * float(history.score):.2f} %  "
        f"norm {np.median(norms):.3g}  {share(np.asarray(history.clipped))}"
    )


@contextlib.contextmanager
def trials(
    total: int, console: rich.console.Console | None = None
) -> Iterator[Callable[[str, int], None]]:
    """Yields the function to call with a name and the number of its trainings just done.

    Args:
        total: the number of trainings that are expected; it grows where there are more.
        console: where to; by default the standard output.
    """
    console = console or rich.console.Console()
    done = 0
    if not console.is_terminal:
        began = time.monotonic()

        def line(name: str, more: int) -> None:
            nonlocal done
            done += more
            left = (time.monotonic() - began) / max(done, 1) * max(total - done, 0)
            about = f"  about {left / 60:.0f} min left" if left > 60 else ""
            print(f"trainings {done}/{max(done, total)}  {name}{about}", flush=True)

        yield line
        return
    with make_bar("trainings", console) as bar:
        task = bar.add_task("compiling", total=total)

        def advance(name: str, more: int) -> None:
            nonlocal done
            done += more
            whole = max(done, total)
            bar.update(task, advance=more, total=whole, description=name, refresh=True)

        yield advance
