"""Jobs that wait for their turn: one small file each, in order, and one process that lets them begin.

The queue is a folder, so it outlives the page. Whoever looks at it and finds nobody in charge starts the dispatcher;
so does every supervisor when its job has ended.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ...extras.env import child_environment
from .files import BOARD_FOLDER, JOB_FILE, write_atomically
from .processes import SECRET_PREFIX, launch_detached
from .record import Record, read_record


DISPATCHER = "llamafactory.webui.jobs.dispatcher"
MAX_DEPTH = 4  # saves/<model>/<method>/<name>, and one more for who groups runs


@dataclass(frozen=True)
class Entry:
    """One place in the queue."""

    file: Path
    run_dir: Path


def enqueue(root: Path, run_dir: Path) -> None:
    """Put a job at the end of the queue."""
    folder = queue_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{time.time_ns():020d}", run_dir.relative_to(root).as_posix())


def entries(root: Path) -> list[Entry]:
    """Return the queue, first come first."""
    folder = queue_folder(root)
    files = sorted(item for item in folder.iterdir() if item.name.isdigit()) if folder.is_dir() else []
    return [entry for file in files if (entry := _read_entry(root, file)) is not None]


def position(root: Path, run_dir: Path) -> int | None:
    """Return how many jobs come before this one, from 0; None when it does not wait."""
    waiting = [entry.run_dir for entry in entries(root)]
    return waiting.index(run_dir) if run_dir in waiting else None


def leave(root: Path, run_dir: Path) -> None:
    """Take a job out of the queue."""
    for entry in entries(root):
        if entry.run_dir == run_dir:
            entry.file.unlink(missing_ok=True)


def wake(root: Path) -> None:
    """Make sure that somebody is in charge while jobs wait."""
    if not entries(root) or not _is_free(root):
        return
    launch_detached(
        [sys.executable, "-m", DISPATCHER, str(root)],
        cwd=root,
        env={name: text for name, text in child_environment().items() if not name.startswith(SECRET_PREFIX)},
        output=root / BOARD_FOLDER / "dispatcher.log",
    ).wait()


def queue_folder(root: Path) -> Path:
    return root / BOARD_FOLDER / "queue"


def dispatcher_lock(root: Path) -> FileLock:
    """Return the lock that the one dispatcher of a root holds as long as it lives."""
    return FileLock(root / BOARD_FOLDER / "dispatcher.lock")


def job_folders(root: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Yield every folder below the root that holds a job; links are not followed."""
    try:
        children = sorted(item for item in root.iterdir() if not item.name.startswith((".", "_")))
    except OSError:
        return
    for child in children:
        if child.is_symlink() or not child.is_dir():
            continue
        if (child / JOB_FILE).is_file():
            yield child
        elif depth > 1:
            yield from job_folders(child, depth - 1)


def shares_devices(one: Record, other: Record) -> bool:
    """Whether two jobs would get in each other's way; without a choice of devices a job may use all."""
    return not one.devices or not other.devices or bool(set(one.devices) & set(other.devices))


def _read_entry(root: Path, file: Path) -> Entry | None:
    try:
        run_dir = (root / file.read_text(encoding="utf-8")).resolve()
    except OSError:
        return None
    is_job = run_dir.is_relative_to(root) and run_dir != root and read_record(run_dir) is not None
    return Entry(file, run_dir) if is_job else None


def _is_free(root: Path) -> bool:
    lock = dispatcher_lock(root)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True
