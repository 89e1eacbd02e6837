"""The one sentence of a log that says why a run failed."""

import re
import signal

from ...extras.logging import redact


ERROR_LINE = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b(?::|$)")
RANK_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s?")
NOISE = re.compile(
    r"^(?:\[(?:INFO|WARNING)\]|[WI]\d{4} |Traceback|\s*$|-{3,}|={3,}|.*\bits?/s\b|.*\|\s*\d+/\d+ \[)"
    r"|messages are above|resource_tracker|^\s*warnings\.warn"
)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MAX_CHARS = 600
USER_ERROR = 2
UNWATCHED = "The run ended while nothing watched it, and left no result."
KILLED = "The run was killed (SIGKILL); when nobody did that, the machine had no memory left."


def find_reason(output: str, exit_code: int | None) -> str:
    """Return why a run failed, from the end of what it printed and the code it ended with."""
    if exit_code is not None and exit_code < 0:
        return _by_signal(-exit_code)
    lines = [RANK_PREFIX.sub("", line).rstrip() for line in plain_lines(output)]
    sentence = "" if exit_code == USER_ERROR else _last_error(lines)
    if not sentence and exit_code is not None:
        sentence = _last_block(lines)
    if sentence:
        return redact(sentence)[:MAX_CHARS]
    if exit_code is None:
        return UNWATCHED
    return f"The run ended with exit code {exit_code} and said nothing."


def plain_lines(output: str) -> list[str]:
    """Split a terminal's output into the lines that a person would see: a progress bar is its last state."""
    return [line.rstrip("\r").rpartition("\r")[2] for line in ESCAPES.sub("", output).split("\n")]


def _last_error(lines: list[str]) -> str:
    """Take the last line of the last traceback; a message may go on for a few lines."""
    for index in range(len(lines) - 1, -1, -1):
        if ERROR_LINE.match(lines[index]):
            return " ".join(line.strip() for line in lines[index : index + 3] if line and not NOISE.search(line))
    return ""


def _last_block(lines: list[str]) -> str:
    """Take the last words that are no progress and no notice, with the list that belongs to them."""
    block: list[str] = []
    for line in reversed(lines):
        if NOISE.search(line):
            if block:
                break
            continue
        block.insert(0, line.strip())
        if not line.startswith((" ", "-")):
            break
    return " ".join(block)


def _by_signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if name == "SIGKILL":
        return KILLED
    return f"The run was ended by {name}."
