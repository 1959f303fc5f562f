"""Exceptions that end a run for a reason that is known."""

import signal


class UserError(Exception):
    """A mistake that the user can fix. The message says what happened, why, and how to fix it."""


class Preempted(BaseException):
    """A signal interrupted the training after a checkpoint was written. Not caught by `except Exception`."""

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.number = number
        """Number of the signal."""
