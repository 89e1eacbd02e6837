"""What a job is doing now, told from its record and from which of its processes live."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ...extras.constants import RESOLVED_CONFIG, TRAINER_LOG
from ...extras.env import child_environment
from ...extras.errors import UserError
from ...train.run_plan import FINISHED
from .files import ALL_RESULTS, OUTPUT_FILE, read_tail
from .outcome import settle
from .processes import launch_detached, run_processes
from .record import Record, change_record, read_record


State = Literal["queued", "running", "stopped", "failed", "finished"]
SUPERVISOR = "llamafactory.webui.jobs.supervisor"
QUIET_SECONDS = 120.0
START_SECONDS = 60.0  # a supervisor that has not said who it is by then never will


def refresh(run_dir: Path, record: Record) -> Record:
    """Return the job as it is: one whose processes have all gone is written down as ended."""
    if record.phase in ("queued", "ended") or _is_attended(record):
        return record
    if run_processes(run_dir):
        return record
    again = read_record(run_dir)  # it may have ended between the two looks
    if again is None or again.phase == "ended":
        return again or record
    return settle(run_dir, None)


def state_of(record: Record) -> State:
    """Return the word for a job that was just refreshed."""
    if record.phase == "ended":
        return record.outcome or "failed"
    return "queued" if record.phase == "queued" else "running"


def state_by_files(run_dir: Path) -> State:
    """Return how far a run got that was started elsewhere; it counts as running while it writes something."""
    if (run_dir / FINISHED).is_file() or (run_dir / ALL_RESULTS).is_file():
        return "finished"
    written = max((_changed(run_dir / name) for name in (TRAINER_LOG, RESOLVED_CONFIG)), default=0.0)
    return "running" if time.time() - written < QUIET_SECONDS else "stopped"


def is_active(run_dir: Path) -> bool:
    """Whether a folder belongs to a job that runs or waits."""
    record = read_record(run_dir)
    return record is not None and refresh(run_dir, record).phase != "ended"


def supervise(
    run_dir: Path, record: Record, *, adopts: bool = False, variables: Mapping[str, str] | None = None
) -> None:
    """Start the supervisor of a job; it goes on by itself."""
    words = [sys.executable, "-m", SUPERVISOR, str(run_dir), *(["--adopt"] if adopts else [])]
    process = launch_detached(
        words, cwd=Path(record.cwd), env=child_environment(**(variables or {})), output=run_dir / OUTPUT_FILE
    )
    if process.wait() != 0:
        told = read_tail(run_dir / OUTPUT_FILE, 2000, record.output_start).strip().splitlines()
        reason = f"The job could not be started: {told[-1] if told else 'no reason was given'}"
        change_record(run_dir, phase="ended", outcome="failed", ended=time.time(), reason=reason)
        raise UserError(reason)


def is_supervised(record: Record) -> bool:
    """Whether the supervisor of a job lives, or is just being started."""
    if record.supervisor is not None:
        return record.supervisor.is_alive
    return time.time() - record.created < START_SECONDS


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_attended(record: Record) -> bool:
    return is_supervised(record) or (record.child is not None and record.child.is_alive)
