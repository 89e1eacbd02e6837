"""The one error class for mistakes that the user can mend."""

from typing import ClassVar


class UserError(ValueError):
    """One clear sentence for the user: what is wrong, the value, what to do.

    `cli.main` prints it to stderr and exits with `exit_code`; no traceback. Anything else that escapes is a bug.
    """

    exit_code: ClassVar[int] = 2
