"""The folder of an export: written aside, and named only when everything in it was checked."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...extras.errors import UserError


FOLDER_MODE, FILE_MODE = 0o755, 0o644  # mkdtemp and safetensors write for their owner only


def check_target(export_dir: str | None) -> Path:
    """Return where the export goes; a folder that already holds something is never written to."""
    if not export_dir:
        raise UserError("export needs export_dir: the folder that receives the model.")
    target = Path(export_dir).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"export_dir {str(target)!r} already holds something: remove it or choose another folder.")
    return target


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a folder beside the target that takes its name at the end, or is removed when something fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(FOLDER_MODE)
        for path in folder.iterdir():
            path.chmod(FILE_MODE)
        if target.is_dir():
            target.rmdir()  # empty, as check_target saw
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
