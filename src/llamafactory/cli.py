"""The entry point `llamafactory-cli`: runs a command and turns what went wrong into a message and an exit code."""

import os
import sys
from collections.abc import Sequence

from .extras.errors import UserError
from .extras.logging import redact, setup_logging
from .launcher import launch


INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user is one message on stderr, anything else a traceback."""
    try:
        setup_logging()
        launch(argv)
        sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"{redact(str(error))}\n")
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone; the interpreter must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


if __name__ == "__main__":
    main()
