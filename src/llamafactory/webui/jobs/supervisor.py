"""`python -m llamafactory.webui.jobs.supervisor RUN_DIR`: starts the command of a job, waits, tells how it ended.

It lives in a session of its own, so nothing that happens to the page reaches it. With --adopt it looks after a
command that runs already and whose supervisor was killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from ...extras.env import child_environment
from .devices import device_variables
from .files import CONFIG_FILES, OUTPUT_FILE
from .outcome import settle
from .processes import (
    SECRET_PREFIX,
    WORKDIR_VARIABLE,
    Identity,
    ask_to_stop,
    end_all,
    identify,
    launch_detached,
    run_processes,
    step_aside,
)
from .queue import wake
from .record import HUB_VARIABLES, Record, change_record, read_record, read_stop, request_stop


GRACE_SECONDS = 600.0
"""What a run gets to finish its step and save a checkpoint."""
POLL_SECONDS = 0.2
ADOPT = "--adopt"


class Command(Protocol):
    """The first process of a job."""

    identity: Identity

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; True when it has ended."""
        ...

    @property
    def exit_code(self) -> int | None: ...


class Started:
    """A command that this process started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.identity = identify(process.pid) or Identity(process.pid, "")

    def wait(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode


class Adopted:
    """A command that somebody else started; nobody can tell its exit code any more."""

    exit_code = None

    def __init__(self, run_dir: Path, identity: Identity | None) -> None:
        self._run_dir = run_dir
        self.identity = identity if identity is not None and identity.is_alive else _any_of(run_dir)

    def wait(self, seconds: float) -> bool:
        if self.identity.is_alive:
            time.sleep(seconds)
        return not self.identity.is_alive


def main(argv: Sequence[str] | None = None) -> None:
    """Look after one job until it has ended."""
    words = list(sys.argv[1:] if argv is None else argv)
    run_dir = Path(words[0]).resolve()
    if read_record(run_dir) is None:
        sys.exit(f"{run_dir} holds no job.")
    step_aside()
    look_after(run_dir, adopts=ADOPT in words[1:])


def look_after(run_dir: Path, *, adopts: bool = False) -> None:
    """Start the command of a job, or take one over; write down how it ends; let the next job begin."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, remember)
    record = change_record(run_dir, supervisor=identify(os.getpid()))
    command: Command | None = None
    if adopts:
        command = Adopted(run_dir, record.child)
    elif read_stop(run_dir) is None:
        command = _start(run_dir, record)
    if command is not None:
        _wait(run_dir, command, asked)
        end_all(run_dir, command.identity)
    settle(run_dir, command.exit_code if command is not None else None)
    wake(Path(record.root))


def command_line(run_dir: Path, record: Record) -> list[str]:
    """Return the words that run a job: fixed ones, and the path of its configuration."""
    words = [sys.executable, "-m", "llamafactory.cli", record.command, str(run_dir / CONFIG_FILES[record.command])]
    return [*words, "overwrite_output_dir=false", "resume_from_checkpoint=true"] if record.goes_on else words


def secret_variable(name: str) -> str:
    """Return the variable that the command reads a secret from, of the one that brought it here."""
    return f"LLAMAFACTORY_{name.removeprefix(SECRET_PREFIX)}"


def _start(run_dir: Path, record: Record) -> Started:
    variables = {
        "LLAMABOARD_ENABLED": "1",
        WORKDIR_VARIABLE: str(run_dir),
        "PYTHONUNBUFFERED": "1",
        "RECORD_VRAM": "1",
        **HUB_VARIABLES[record.hub],
        **device_variables(record.devices, record.processes),
    }
    own = child_environment()
    secret = {secret_variable(name): own.pop(name) for name in list(own) if name.startswith(SECRET_PREFIX)}
    process = launch_detached(
        command_line(run_dir, record),
        cwd=Path(record.cwd),
        env={**own, **secret, **variables},
        output=run_dir / OUTPUT_FILE,
    )
    command = Started(process)
    change_record(run_dir, child=command.identity, phase="running", started=time.time())
    return command


def _wait(run_dir: Path, command: Command, asked: list[int]) -> None:
    """Wait for the end; on request ask the command to stop, and end it by force when its grace is over."""
    asked_at: float | None = None
    while not command.wait(POLL_SECONDS):
        if asked and read_stop(run_dir) is None:
            request_stop(run_dir, GRACE_SECONDS)
        request = read_stop(run_dir)
        if request is None:
            continue
        if asked_at is None:
            asked_at = time.monotonic()
            ask_to_stop(command.identity)
        if time.monotonic() - asked_at >= request.grace:
            end_all(run_dir, command.identity)


def _any_of(run_dir: Path) -> Identity:
    """Return one process of a run whose first process is gone."""
    return next(iter(run_processes(run_dir)), Identity(0, "gone"))


if __name__ == "__main__":
    main()
