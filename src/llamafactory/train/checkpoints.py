"""Checkpoint folders on disk: written aside, made durable, then renamed into place.

A folder called `checkpoint-<step>` is complete from the moment it has that name. While it is being written it lies
in `_unfinished/`, which no reader looks at and the next start removes. Checkpoints that do not belong to a run that
starts or goes on are moved to `_earlier_checkpoints/`, so that neither resume nor rotation mixes two runs.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..extras.errors import UserError


UNFINISHED = "_unfinished"  # uploads skip names that begin with an underscore
EARLIER = "_earlier_checkpoints"
STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "global_step*")
_OPTIMIZER = ("optimizer*", "global_step*", "*-of-*-optimizer.pt")


def checkpoint_step(folder: Path) -> int:
    """Return the step that a checkpoint folder's name tells, or -1 when it is no such name."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoints of output_dir, oldest step first; folders that are not checkpoints are left out."""
    if not output_dir.is_dir():
        return []
    found = [entry for entry in output_dir.iterdir() if checkpoint_step(entry) >= 0 and is_complete(entry)]
    return sorted(found, key=checkpoint_step)


def is_complete(folder: Path) -> bool:
    """Tell whether a folder holds weights and a readable trainer state (which is written after them)."""
    return bool(read_state(folder)) and _holds(folder, _WEIGHTS)


def can_resume(folder: Path) -> bool:
    """Tell whether a checkpoint also holds the optimizer; `save_only_model` leaves it out."""
    return _holds(folder, _OPTIMIZER) and (folder / STATE_FILE).is_file()


def read_state(folder: Path) -> dict[str, Any]:
    """Return the trainer state of a checkpoint, or an empty dict when it is missing or damaged."""
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def remove_unfinished(output_dir: Path) -> None:
    """Delete what a killed run was writing when it died."""
    shutil.rmtree(output_dir / UNFINISHED, ignore_errors=True)


def publish(staged: Path, final: Path) -> None:
    """Make a staged checkpoint durable and give it its name; after a power cut it is there whole or not at all."""
    if not (staged / STATE_FILE).is_file():
        raise UserError(f"The checkpoint in {str(staged)!r} was not written completely; is the disk full?")
    for folder, _, names in os.walk(staged, topdown=False):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    staged.rename(final)
    _sync(final.parent)
    remove_if_empty(staged.parent)


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond limit; the newest and the best one stay."""
    checkpoints = list_checkpoints(output_dir)
    if limit is None or len(checkpoints) <= limit:
        return
    kept = {checkpoints[-1].resolve()} | ({Path(best).resolve()} if best else set())
    spare = len(checkpoints) - max(limit, len(kept))
    for checkpoint in [entry for entry in checkpoints if entry.resolve() not in kept][: max(spare, 0)]:
        _remove(checkpoint)


def set_aside(output_dir: Path, after_step: int) -> list[Path]:
    """Move the checkpoints beyond a step, which another run wrote, to `_earlier_checkpoints/`; return them.

    What lay there before is deleted: one earlier run is kept, not all.
    """
    if not output_dir.is_dir():
        return []
    stale = [entry for entry in output_dir.iterdir() if entry.is_dir() and checkpoint_step(entry) > after_step]
    if stale:
        shutil.rmtree(output_dir / EARLIER, ignore_errors=True)
        (output_dir / EARLIER).mkdir()
    for entry in stale:
        entry.rename(output_dir / EARLIER / entry.name)
    return sorted(stale, key=checkpoint_step)


def remove_if_empty(folder: Path) -> None:
    """Delete a folder that holds nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_durably(path: Path, text: str) -> None:
    """Replace a text file in one step: readers see the old text or the new one."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _remove(checkpoint: Path) -> None:
    """Take the name away first, so that a kill in the middle leaves no half checkpoint under it."""
    doomed = checkpoint.parent / UNFINISHED / checkpoint.name
    doomed.parent.mkdir(exist_ok=True)
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
    remove_if_empty(doomed.parent)


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    return folder.is_dir() and any(True for pattern in patterns for _ in folder.glob(pattern))


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk; Windows can do that only through the handle that wrote."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def cache_in_config(config: Any) -> Iterator[None]:
    """Save a model that uses its key-value cache, which is off while it trains."""
    use_cache = getattr(config, "use_cache", None)
    if use_cache is not None:
        config.use_cache = True
    yield
    if use_cache is not None:
        config.use_cache = use_cache
