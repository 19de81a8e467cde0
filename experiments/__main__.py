"""The command line: `python -m experiments run mnist`, and `compare`, `pilot`, `report`."""

import contextlib
import functools
import io
import re
import shlex
import sys
from collections.abc import Sequence

from tyro.extras import SubcommandApp

from experiments.errors import BadInput
from experiments.options import Compare, Pilot, Report, RunMnist
from experiments.private_options import RunPrivate

PROGRAM = "python -m experiments"
Command = RunMnist | RunPrivate | Compare | Pilot | Report


def main(arguments: Sequence[str]) -> int:
    """Runs a command, and returns the exit status: 2 where the user has something to put right."""
    try:
        carry_out(parse(arguments), arguments)
    except (BadInput, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        again = str(stop) or shlex.join([sys.executable, *PROGRAM.split()[1:], *arguments])
        print(f"stopped; to continue: {again}", file=sys.stderr)
        return 130
    return 0


def carry_out(options: Command, arguments: Sequence[str]) -> None:
    """Does what the options say."""
    command = shlex.join([*PROGRAM.split(), *arguments])
    # Imported after parsing, so that a typing mistake is told at once.
    match options:
        case RunMnist() | RunPrivate():
            from experiments import private, run

            if options.resume is not None:
                options = parse(arguments, run.resumed(options))
            if isinstance(options, RunMnist):
                run.run(options, command)
            elif isinstance(options, RunPrivate):
                private.command(options, command)
        case Compare():
            from experiments import compare

            compare.command(options, command)
        case Pilot():
            from experiments import pilot

            pilot.command(options)
        case Report():
            from experiments import answers

            answers.command(options)


def parse(arguments: Sequence[str], *defaults: RunMnist | RunPrivate) -> Command:
    """Returns the options that the arguments give, or else the defaults."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return commands(*defaults).cli(prog=PROGRAM, args=arguments)
    except SystemExit as exit:
        if not exit.code:
            raise
        raise BadInput(unboxed(told.getvalue())) from exit


def commands(*defaults: RunMnist | RunPrivate) -> SubcommandApp:
    """Returns every command with its options, and the defaults of those."""
    fields = {type(options): vars(options) for options in defaults}
    run = SubcommandApp()
    for name, options in {"mnist": RunMnist, "mnist-private": RunPrivate}.items():
        run.command(name=name)(functools.partial(options, **fields.get(options, {})))
    app = SubcommandApp()
    app.command(run, name="run", help="Train one model on a task.")
    app.command(name="compare")(Compare)
    app.command(name="pilot")(Pilot)
    app.command(name="report")(Report)
    return app


def unboxed(message: str) -> str:
    """Returns what tyro says in a box, with help of many lines, as one line."""
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
