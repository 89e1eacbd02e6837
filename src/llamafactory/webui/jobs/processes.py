"""Processes by who they are, since a number is given again, and the ways to end all those of a run.

The first process of a run is asked alone: torchrun hands the request on to its workers, and a worker that were asked
twice would end at once, without a checkpoint. Everything that is left after that is found by what its environment
says (`LLAMABOARD_WORKDIR`), so that workers are found whose parents were killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


WORKDIR_VARIABLE = "LLAMABOARD_WORKDIR"
SECRET_PREFIX = "LLAMABOARD_SECRET_"  # noqa: S105  a name, no secret
"""What begins so in the environment of a supervisor is for its own job alone."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
END_SECONDS = 10.0  # what the system gets to remove killed processes
ROUND_SECONDS = 0.05


@dataclass(frozen=True)
class Identity:
    """A process number, and a mark that no other process with this number has."""

    pid: int
    mark: str

    @property
    def is_alive(self) -> bool:
        """Whether this very process runs; one that ended and was not yet collected does not."""
        return bool(self.mark) and _mark(self.pid) == self.mark


def identify(pid: int) -> Identity | None:
    """Return who has this number now, or None."""
    mark = _mark(pid)
    return Identity(pid, mark) if mark else None


def launch_detached(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own: neither a closed terminal nor the end of its parent reaches it."""
    with output.open("ab") as file:
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def step_aside() -> None:
    """Go on in a child that no one waits for, and let the caller know by ending that all is well so far.

    Whoever started this process collects it at once; the child belongs to the system and leaves no zombie.
    """
    if hasattr(os, "fork") and os.fork():
        os._exit(0)


def ask_to_stop(process: Identity) -> None:
    """Send SIGTERM to the first process of a run: training saves a checkpoint and ends."""
    if process.is_alive:
        _send(process.pid, signal.SIGTERM)


def run_processes(run_dir: Path) -> list[Identity]:
    """Find every process that works for a run, wherever its parents are."""
    return list(_marked(str(run_dir.resolve())))


def end_all(run_dir: Path, first: Identity | None) -> bool:
    """Kill what is left of a run; True when nothing of it is alive any more."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        left = {*run_processes(run_dir), *_family(first)}
        if not left:
            return True
        if time.monotonic() > deadline:
            return False
        for process in left:
            if process.is_alive:
                _send(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        time.sleep(ROUND_SECONDS)


def memory_bytes(first: Identity) -> int:
    """Return what the first process of a run and its descendants hold in memory."""
    total = 0
    for process in _family(first):
        try:
            total += psutil.Process(process.pid).memory_info().rss
        except psutil.Error:
            continue
    return total


def _family(first: Identity | None) -> list[Identity]:
    if first is None or not first.is_alive:
        return []
    try:
        children = psutil.Process(first.pid).children(recursive=True)
    except psutil.Error:
        children = []
    return [first, *(found for child in children if (found := identify(child.pid)) is not None)]


def _marked(run_dir: str) -> Iterator[Identity]:
    own = os.getpid()
    for process in psutil.process_iter():
        try:
            is_marked = process.pid != own and process.environ().get(WORKDIR_VARIABLE) == run_dir
        except (psutil.Error, OSError):
            continue  # it ended, or belongs to somebody else
        if is_marked and (found := identify(process.pid)) is not None:
            yield found


def _mark(pid: int) -> str:
    """Return when the process was started, "" when there is none; the clock of the machine may jump meanwhile."""
    if sys.platform.startswith("linux"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else f"{_boot()}:{fields[19]}"
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return ""


def _boot() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "boot"


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
