"""job.json: what is known about a job. Written by whoever knows more, read by everybody, outliving all of them."""

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from .files import CONFIG_FILES, JOB_FILE, LOCK_FILE, STOP_FILE, write_atomically
from .processes import Identity


Phase = Literal["queued", "starting", "running", "ended"]
HUB_VARIABLES = {
    "huggingface": {"USE_MODELSCOPE_HUB": "0", "USE_OPENMIND_HUB": "0"},
    "modelscope": {"USE_MODELSCOPE_HUB": "1", "USE_OPENMIND_HUB": "0"},
    "openmind": {"USE_MODELSCOPE_HUB": "0", "USE_OPENMIND_HUB": "1"},
    "": {},
}
"""Hub -> what a job finds in its environment; the empty name leaves it as the server's is."""
Outcome = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One job as it was last seen."""

    command: str
    root: str
    """The folder that holds all runs."""
    cwd: str
    """Where the command runs, so that relative paths mean what they meant on the page."""
    created: float
    """Seconds since 1970, like all times here."""
    phase: Phase
    devices: tuple[int, ...] = ()
    """Accelerators that the job may use; empty for all."""
    processes: int | None = None
    """How many workers train together; None for one on each device."""
    hub: str = ""
    """Where ids are looked up: a key of HUB_VARIABLES."""
    goes_on: bool = False
    """Whether this start continues from the newest checkpoint of the folder."""
    supervisor: Identity | None = None
    child: Identity | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    """What the command ended with; negative for a signal, None when nobody saw it."""
    outcome: Outcome | None = None
    reason: str = ""
    """One sentence on how it ended, for a job that did not finish."""
    saved_step: int | None = None
    """The step of the newest checkpoint when it ended."""
    output_start: int = 0
    """Where the output of this start begins in the log file, which earlier starts wrote to as well."""


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """Somebody wants a job to end."""

    at: float
    grace: float
    """Seconds that it gets to save a checkpoint."""


def read_record(run_dir: Path) -> Record | None:
    """Return the job of a folder; None when there is none, or none that can be read."""
    try:
        data: Any = json.loads((run_dir / JOB_FILE).read_text(encoding="utf-8"))
        known = {item.name for item in fields(Record)}
        values = {key: value for key, value in data.items() if key in known}
        for key in ("supervisor", "child"):
            values[key] = Identity(**values[key]) if values.get(key) else None
        values["devices"] = tuple(int(item) for item in values.get("devices", ()))
        record = Record(**values)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return record if record.command in CONFIG_FILES and record.hub in HUB_VARIABLES else None


def write_record(run_dir: Path, record: Record) -> None:
    """Replace the job of a folder."""
    write_atomically(run_dir / JOB_FILE, json.dumps(asdict(record), indent=2) + "\n")


def change_record(run_dir: Path, **changes: Any) -> Record:
    """Write further facts about a job over what stands there."""
    with lock(run_dir):
        record = read_record(run_dir)
        if record is None:
            raise FileNotFoundError(run_dir / JOB_FILE)
        record = replace(record, **changes)
        write_record(run_dir, record)
    return record


def lock(run_dir: Path) -> FileLock:
    """Keep others from changing the job of a folder; the system takes the lock back from whoever dies."""
    return FileLock(run_dir / LOCK_FILE)


def request_stop(run_dir: Path, grace: float) -> None:
    """Leave word that the job of a folder is to end."""
    write_atomically(run_dir / STOP_FILE, json.dumps({"at": time.time(), "grace": grace}) + "\n")


def read_stop(run_dir: Path) -> StopRequest | None:
    """Return the request to end, if there is one."""
    try:
        data = json.loads((run_dir / STOP_FILE).read_text(encoding="utf-8"))
        return StopRequest(at=float(data["at"]), grace=float(data["grace"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_stop(run_dir: Path) -> None:
    """Take a request to end back, before the folder is used again."""
    (run_dir / STOP_FILE).unlink(missing_ok=True)
