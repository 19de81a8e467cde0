"""The command line: `python -m experiments run mnist`."""

import contextlib
import functools
import io
import re
import shlex
import sys
from collections.abc import Sequence

import tyro
from tyro.extras import SubcommandApp

from experiments.errors import BadInput
from experiments.options import RunMnist

PROGRAM = "python -m experiments"


def main(arguments: Sequence[str]) -> int:
    """Runs a command, and returns the exit status: 2 where the user has something to put right."""
    try:
        options = parse(arguments, RunMnist())
        from experiments import run  # after parsing, so that a typing mistake is told at once

        if options.resume is not None:
            options = parse(arguments, run.resumed(options))
        run.run(options, shlex.join([*PROGRAM.split(), *arguments]))
    except (BadInput, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume FOLDER continues the run", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str], defaults: RunMnist) -> RunMnist:
    """Returns the options that the arguments give, or else the defaults."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return commands(defaults).cli(
                prog=PROGRAM, args=arguments, config=[tyro.conf.FlagCreatePairsOff]
            )
    except SystemExit as exit:
        if not exit.code:
            raise
        raise BadInput(unboxed(told.getvalue())) from exit


def commands(mnist: RunMnist) -> SubcommandApp:
    """Returns every command with its options, and the defaults of those."""
    run = SubcommandApp()
    run.command(name="mnist")(functools.partial(RunMnist, **vars(mnist)))
    app = SubcommandApp()
    app.command(run, name="run", help="Train one model on a task.")
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
