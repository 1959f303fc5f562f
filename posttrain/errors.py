"""The error for mistakes that the user can fix. It is printed as one message, without a traceback."""


class UserError(Exception):
    """A mistake that the user can fix. The message says what happened, why, and how to fix it."""
