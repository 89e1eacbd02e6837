"""One run at a time writes into an output_dir: a second would mix its checkpoints and logs with the first one's."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..extras.errors import UserError


LOCK_FILE = "_run.lock"  # uploads skip names that begin with an underscore
"""Lies in the folder as long as a run writes there; the system takes the lock back from whoever dies."""
PATIENCE_SECONDS = 8.0
"""Loader processes of a run that was killed notice within five seconds, and hold its lock until then."""


@contextmanager
def sole_writer(output_dir: Path) -> Iterator[None]:
    """Hold the folder, which is made if need be; an empty one that was made here goes again."""
    is_new = not output_dir.exists()
    file, name = output_dir / LOCK_FILE, repr(str(output_dir))
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        raise UserError(
            f"output_dir {name} is being written by another run: wait for it or stop it, or choose another output_dir."
        ) from None
    except OSError as error:
        raise UserError(f"output_dir {name} cannot be written ({error.strerror}); choose another.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            file.unlink()
        lock.release()
        if is_new:
            with suppress(OSError):  # something was written
                output_dir.rmdir()
