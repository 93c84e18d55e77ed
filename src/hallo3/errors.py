"""Errors that are the user's to mend: one line that says what, where and what to do."""


class UserError(Exception):
    """Bad input. The command line prints the message as one line and exits with code 2; no traceback is shown.

    The message names the input (a path, an option), what is wrong with it and the remedy, in that order.
    """
