"""Log lines of this package: one logger tree, to stderr, quiet on all ranks but the first."""

import functools
import logging
import re
import sys
from pathlib import Path

from .env import read_env
from .errors import UserError


ROOT = "llamafactory"
RUNNING_LOG = "running_log.txt"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
TOKEN_SHAPES = re.compile(r"\b(?:(hf_)[A-Za-z0-9]{8,}|(sk-|ms-)[A-Za-z0-9_\-]{16,}|(gh[pousr]_)[A-Za-z0-9]{8,})")


class RedactingFormatter(logging.Formatter):
    """Formats a record and hides whatever looks like an access token, in tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class StderrHandler(logging.Handler):
    """Writes to whatever sys.stderr is at that moment, so that redirecting it works."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module of this package; name is the module's `__name__`."""
    return logging.getLogger(name if name == ROOT or name.startswith(ROOT + ".") else f"{ROOT}.{name}")


def setup_logging() -> None:
    """Print this package's log lines to stderr; LLAMAFACTORY_VERBOSITY sets the level of the first rank."""
    env = read_env()
    level = env.verbosity.upper()
    if level not in LEVELS:
        raise UserError(f"LLAMAFACTORY_VERBOSITY is {env.verbosity!r}; use one of {', '.join(LEVELS)}.")

    logger = logging.getLogger(ROOT)
    logger.setLevel(level if env.rank == 0 else max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    logger.propagate = False
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        handler = StderrHandler()
        handler.setFormatter(RedactingFormatter("[%(levelname)s] %(message)s"))
        logger.addHandler(handler)
    if env.llamaboard_enabled and env.llamaboard_workdir and env.rank == 0:
        _log_to(Path(env.llamaboard_workdir), logger)


def notice_once(logger: logging.Logger, message: str) -> None:
    """Log a warning that is not worth saying twice in one process."""
    _notice(logger.name, message)


def redact(text: str) -> str:
    """Replace access tokens inside text by their first letters and ***."""
    return TOKEN_SHAPES.sub(lambda match: f"{match.group(match.lastindex or 0)}***", text)


def _log_to(folder: Path, logger: logging.Logger) -> None:
    """Write the lines of the first rank to the folder of a run as well, for the page that follows it."""
    if any(isinstance(handler, logging.FileHandler) for handler in logger.handlers):
        return
    try:
        handler = logging.FileHandler(folder / RUNNING_LOG, encoding="utf-8")
    except OSError as error:
        raise UserError(f"LLAMABOARD_WORKDIR is {str(folder)!r}, which cannot be written to: {error}.") from None
    handler.setFormatter(RedactingFormatter("[%(levelname)s|%(asctime)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)


@functools.cache
def _notice(name: str, message: str) -> None:
    logging.getLogger(name).warning(message)
