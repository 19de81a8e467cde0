"""Errors that the user can fix, and the stop that the user asks for."""


class BadInput(ValueError):
    """A mistake in what the user gave; its message is one line: what, why and what to do."""


class Stopped(KeyboardInterrupt):
    """The user stopped a command; the message is the command that continues it."""
