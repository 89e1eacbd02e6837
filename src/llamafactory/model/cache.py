"""Folders that are built once: beside their place, then renamed, so that a killed build leaves nothing half-made."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from ..extras.errors import UserError
from ..extras.logging import get_logger


logger = get_logger(__name__)

FOLDER_MODE, FILE_MODE = 0o755, 0o644  # mkdtemp and safetensors write privately; a cache may be shared


def cached_folder(entry: Path, build: Callable[[Path], None], notice: str) -> Path:
    """Return the folder `entry`, calling `build` on an empty folder first if it is not there yet.

    A lock makes the other processes of a run wait for the first instead of building the same thing again.
    """
    if entry.is_dir():
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.with_name(f".{entry.name}.lock")):
            if not entry.is_dir():
                _build_aside(entry, build, notice)
    except PermissionError as error:
        raise UserError(
            f"The cache folder {entry.parent} cannot be written ({error.strerror}); set LLAMAFACTORY_CACHE."
        ) from error
    return entry


def _build_aside(entry: Path, build: Callable[[Path], None], notice: str) -> None:
    prefix = f".{entry.name}."
    for leftover in entry.parent.glob(f"{prefix}*/"):  # of a killed build: nobody else builds while we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=prefix, dir=entry.parent))
    try:
        logger.info("%s (once, into %s).", notice, entry)
        build(aside)
        for path in aside.rglob("*"):
            path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)
        aside.chmod(FOLDER_MODE)
        aside.rename(entry)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
