"""The one error that is meant for the user: it is printed as it is, without a stack trace."""


class UserError(Exception):
    """Something the user can mend. The message names the thing, the value, the consequence and the remedy."""
