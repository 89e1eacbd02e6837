"""`python -m llamafactory.webui.jobs.dispatcher ROOT`: lets waiting jobs begin, one after another, in order.

A job begins when no running one shares a device with it; how the one before it ended does not matter. The process
ends when nothing waits any more.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from ...extras.errors import UserError
from .processes import step_aside
from .queue import Entry, dispatcher_lock, entries, job_folders, shares_devices
from .record import Record, lock, read_record, write_record
from .state import refresh, supervise


POLL_SECONDS = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Be in charge of a queue until it is empty; at most one process is."""
    root = Path((sys.argv[1:] if argv is None else argv)[0]).resolve()
    step_aside()
    while entries(root):
        try:
            with dispatcher_lock(root).acquire(timeout=0):
                work_off(root)
        except Timeout:
            return
        # Who came between the last look and the release of the lock is seen by the next look.


def work_off(root: Path) -> None:
    """Let every waiting job begin when it is its turn."""
    while waiting := entries(root):
        entry = waiting[0]
        record = read_record(entry.run_dir)
        if record is None or record.phase != "queued":
            entry.file.unlink(missing_ok=True)
        elif any(shares_devices(record, other) for other in running(root)):
            time.sleep(POLL_SECONDS)
        else:
            _begin(entry)


def running(root: Path) -> list[Record]:
    """Return the jobs below the root that run now."""
    found: list[Record] = []
    for run_dir in job_folders(root):
        record = read_record(run_dir)
        if record is not None and record.phase in ("starting", "running"):
            record = refresh(run_dir, record)
            if record.phase in ("starting", "running"):
                found.append(record)
    return found


def _begin(entry: Entry) -> None:
    with lock(entry.run_dir):
        record = read_record(entry.run_dir)
        if record is None or record.phase != "queued":
            return  # cancelled a moment ago
        record = replace(record, phase="starting", created=time.time())
        write_record(entry.run_dir, record)
    entry.file.unlink(missing_ok=True)
    try:
        supervise(entry.run_dir, record)
    except UserError as error:
        sys.stderr.write(f"{entry.run_dir}: {error}\n")


if __name__ == "__main__":
    main()
