"""A job is asked to end, from whichever process somebody looks at it."""

import time
from dataclasses import replace
from pathlib import Path

from ...extras.errors import UserError
from .processes import run_processes
from .queue import leave
from .record import lock, read_record, read_stop, request_stop, write_record
from .state import is_supervised, refresh, supervise
from .status import read_status
from .supervisor import GRACE_SECONDS


DOUBLE_CLICK_SECONDS = 1.0
"""A second press sooner than this is part of the first."""


def abort(run_dir: Path, *, grace: float = GRACE_SECONDS) -> None:
    """Ask a job to save a checkpoint and end; whatever of it is left after `grace` seconds is killed.

    Returns at once: `read_status` tells when it has ended. Asked again with a shorter grace, the shorter one counts.
    A job that waits in the queue is taken out of it.
    """
    record = read_record(run_dir)
    if record is None:
        raise UserError(f"{run_dir.name!r} was not started by the board, so it cannot be stopped by it.")
    if record.phase == "queued" and cancel(run_dir):
        return
    record = refresh(run_dir, record)
    if record.phase == "ended":
        return
    request_stop(run_dir, grace)
    if not is_supervised(record) and run_processes(run_dir):
        supervise(run_dir, record, adopts=True)


def press_abort(run_dir: Path) -> bool:
    """Abort as its button does: asked again, a job that is stopping is ended at once; tell whether that was done."""
    request = read_stop(run_dir)
    is_second = request is not None and time.time() - request.at >= DOUBLE_CLICK_SECONDS
    ends_at_once = is_second and read_status(run_dir, with_curves=False).is_stopping
    if ends_at_once:
        abort(run_dir, grace=0)
    elif request is None:
        abort(run_dir)
    return ends_at_once


def cancel(run_dir: Path) -> bool:
    """Take a job out of the queue; False when it does not wait (any more)."""
    with lock(run_dir):
        record = read_record(run_dir)
        if record is None or record.phase != "queued":
            return False
        reason = "taken out of the queue before it began"
        write_record(run_dir, replace(record, phase="ended", outcome="stopped", ended=time.time(), reason=reason))
    leave(Path(record.root), run_dir)
    return True
