"""One run at a time writes into an output_dir: a second would mix its checkpoints and logs with the first one's.

The folder itself is locked (flock), so nothing lies in it, and the lock ends with the process however that ends.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..extras.errors import UserError


PATIENCE_SECONDS = 8.0
"""Loader processes of a run that was killed notice within five seconds, and hold its lock until then."""
POLL_SECONDS = 0.2


@contextmanager
def sole_writer(output_dir: Path) -> Iterator[None]:
    """Hold the folder, which is made if need be; an empty one that was made here goes again."""
    is_new = not output_dir.exists()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir {str(output_dir)!r} cannot be made ({error.strerror}); choose another."
        ) from error
    try:
        with _locked(output_dir):
            yield
    finally:
        if is_new:
            with suppress(OSError):
                output_dir.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if os.name != "posix":  # Windows cannot open a folder
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl

    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks
            if time.monotonic() > deadline:
                raise UserError(
                    f"output_dir {str(folder)!r} is being written by another run: wait for it or stop it, or choose "
                    "another output_dir."
                ) from None
            time.sleep(POLL_SECONDS)
        else:
            return
