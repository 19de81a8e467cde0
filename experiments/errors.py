"""What a user can put right."""


class BadInput(ValueError):
    """A mistake in what the user gave; its message is one line: what, why and what to do."""
