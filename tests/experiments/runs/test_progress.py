import io

import numpy as np
import rich.console

from experiments.runs import progress
from experiments.training.train import History

HISTORY = History(
    loss=np.array([0.5, 0.25]),
    norm=np.array([2.0, 4.0]),
    limit=np.array([3.0, 3.0]),
    clipped=np.array([0.0, 0.25]),
    score=np.float32(0.9125),
    validation=np.float32(np.nan),
)


def test_off_a_terminal_it_is_a_plain_line_an_epoch(capsys):
    with progress.report(2) as report:
        report(1, HISTORY)
        report(2, HISTORY)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"epoch {number}/2  loss 0.3750  accuracy 91.25 %  norm 3  clip rate 50.0 %"
        for number in (1, 2)
    ]


def test_the_share_of_the_examples_has_a_name_of_its_own(capsys):
    with progress.report(1, share=progress.examples_clipped) as report:
        report(1, HISTORY)
    assert capsys.readouterr().out.endswith("norm 3  examples clipped 12.5 %\n")


def test_on_a_terminal_it_is_a_bar_with_the_time_left():
    terminal = io.StringIO()
    console = rich.console.Console(file=terminal, force_terminal=True, width=120)
    with progress.report(3, done=1, console=console) as report:
        report(2, HISTORY)
        report(3, HISTORY)
    shown = terminal.getvalue()
    assert "compiling" in shown
    for part in (
        "epoch",
        "3/3",
        "loss 0.3750",
        "accuracy 91.25 %",
        "clip rate 50.0 %",
        "left",
        "0:00",
    ):
        assert part in shown
