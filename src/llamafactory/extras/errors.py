"""The one error class for mistakes that the user can mend."""


class UserError(ValueError):
    """One clear sentence for the user: what is wrong, the value, what to do.

    `cli.main` prints it to stderr and exits with code 2; no traceback. Anything else that escapes is a bug.
    """
