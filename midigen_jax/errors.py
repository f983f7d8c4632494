"""The error that users see."""


class InputError(ValueError):
    """Something the user gave is wrong; the message names it and the fix in one line."""
