"""The command line: `python -m experiments run mnist`, `compare`, `pilot`, `report`..."""

import contextlib
import functools
import io
import re
import shlex
import sys
from collections.abc import Sequence

from tyro.extras import SubcommandApp

from experiments.errors import BadInput
from experiments.options.claims import Claims
from experiments.options.compare import Compare
from experiments.options.export import Export
from experiments.options.list import List
from experiments.options.pilot import Pilot
from experiments.options.places import command_line
from experiments.options.private import RunPrivate
from experiments.options.report import Report
from experiments.options.run import Run, RunMnist
from experiments.options.verify import Verify

PROGRAM = "python -m experiments"
Command = RunMnist | RunPrivate | Compare | Claims | Pilot | Export | Report | Verify | List


def main(arguments: Sequence[str]) -> int:
    """Runs a command, and returns the exit status: 2 for an error that the user can fix."""
    try:
        options = parse(arguments)
        command = shlex.join([*PROGRAM.split(), *arguments])
        if not isinstance(options, Run):
            options.carry_out(command)
            return 0
        with options.join():
            if options.resume is not None:
                options = parse(arguments, options.restore_options())
            options.carry_out(command)
    except (BadInput, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        again = str(stop) or command_line(list(arguments))
        print(f"stopped; to continue: {again}", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str], *defaults: RunMnist | RunPrivate) -> Command:
    """Returns the options that the arguments give, otherwise the defaults."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return commands(*defaults).cli(prog=PROGRAM, args=arguments)
    except SystemExit as exit:
        if not exit.code:
            raise
        raise BadInput(unbox(message.getvalue())) from exit


def commands(*defaults: RunMnist | RunPrivate) -> SubcommandApp:
    """Returns every command with its options, and the defaults of those."""
    fields = {type(options): vars(options) for options in defaults}
    run = SubcommandApp()
    for name, options in {"mnist": RunMnist, "mnist-private": RunPrivate}.items():
        run.command(name=name)(functools.partial(options, **fields.get(options, {})))
    app = SubcommandApp()
    app.command(run, name="run", help="Train one model on a task.")
    app.command(name="compare")(Compare)
    app.command(name="claims")(Claims)
    app.command(name="verify")(Verify)
    app.command(name="list")(List)
    app.command(name="pilot")(Pilot)
    app.command(name="export")(Export)
    app.command(name="report")(Report)
    return app


def unbox(message: str) -> str:
    """Returns tyro's boxed message of many lines as one line."""
    # The rules between the sections are of hyphens where the output is not UTF-8.
    _, *sections = re.split(r"─{3,}|-{9,}", re.sub("[│╭╮╰╯]", "", message))
    texts = [" ".join(section.split()).rstrip(".") for section in sections]
    return "; ".join(
        re.sub(r"^(Perhaps you meant: --[\w-]+).*", r"\1", text)
        for text in texts
        if text and not text.startswith("Argument helptext:")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
