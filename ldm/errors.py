"""Errors that a person can mend: shown as one message, without a traceback."""


class UserError(ValueError):
    """Something about the input is wrong; the message says what, and what to do."""
