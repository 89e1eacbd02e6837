"""All runs of a folder: found, narrowed down, compared, copied, deleted."""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...extras.constants import RESOLVED_CONFIG
from ...extras.errors import UserError
from .files import CONFIG_FILES, FORM_FILE
from .outcome import load_yaml, read_yaml
from .progress import Curve
from .queue import MAX_DEPTH
from .record import Record, read_record
from .state import State, refresh, state_by_files, state_of
from .status import is_run, read_status


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run in a list."""

    run_id: str
    """Its path below the folder of all runs, with slashes."""
    run_dir: Path
    state: State
    command: str
    config: dict[str, Any]
    """What it was told."""
    changed: float
    """When something last happened, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs side by side."""

    differences: dict[str, dict[str, Any]]
    """Key -> run -> value, for the keys whose values differ; a run that lacks a key has None."""
    curves: dict[str, dict[str, Curve]]
    """Curve -> run -> points."""
    results: dict[str, dict[str, float]]
    """Metric -> run -> value."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What a new run takes over from an old one."""

    form: dict[str, Any]
    """What the page showed when the old run was started; empty for a run of the command line."""
    config: dict[str, Any]
    """The keys of the old run, without its folder and where it went on from."""


def list_runs(root: Path, *, text: str = "", states: Iterable[str] = ()) -> list[RunRow]:
    """Return the runs below a folder, newest first; links are not followed.

    `text` keeps those whose id or configuration holds all its words; `states` those in one of these states.
    """
    root = root.resolve()
    wanted, words = set(states), text.lower().split()
    rows = [row for folder in _run_folders(root) if (row := _read_row(root, folder)) is not None]
    kept = [row for row in rows if (not wanted or row.state in wanted) and _matches(row, words)]
    return sorted(kept, key=lambda row: row.changed, reverse=True)


def find_run(root: Path, run_id: str) -> Path:
    """Return the folder of a run that the listing would show; anything else that a page may send is refused."""
    root = root.resolve()
    parts = run_id.split("/")
    folder = root.joinpath(*parts) if "\0" not in run_id else root
    is_listed = (
        0 < len(parts) <= MAX_DEPTH
        and not any(part in ("", ".", "..") or part.startswith((".", "_")) for part in parts)
        and folder.resolve() == folder
        and folder != root
        and is_run(folder)
    )
    if not is_listed:
        raise UserError(f"There is no run {run_id!r}; refresh the list of runs.")
    return folder


def delete_runs(root: Path, run_ids: Sequence[str]) -> list[str]:
    """Delete runs with everything in their folders, and return their ids; one that runs or waits stays."""
    folders = {run_id: find_run(root, run_id) for run_id in run_ids}
    for run_id, folder in folders.items():
        if _state(folder, read_record(folder)) in ("running", "queued"):
            raise UserError(f"The run {run_id!r} runs or waits; stop it before you delete it.")
    for folder in folders.values():
        shutil.rmtree(folder)
        _remove_empty_parents(root.resolve(), folder.parent)
    return list(folders)


def compare_runs(root: Path, run_ids: Sequence[str]) -> Comparison:
    """Put configurations, curves and results of several runs side by side."""
    statuses = {run_id: read_status(find_run(root, run_id)) for run_id in run_ids}
    configs = {run_id: read_config(status.run_dir) for run_id, status in statuses.items()}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differences = {key: {run_id: config.get(key) for run_id, config in configs.items()} for key in keys}
    return Comparison(
        differences={key: row for key, row in differences.items() if len({repr(value) for value in row.values()}) > 1},
        curves=_turned({run_id: status.curves for run_id, status in statuses.items()}),
        results=_turned({run_id: status.results for run_id, status in statuses.items()}),
    )


def clone_run(root: Path, run_id: str) -> Copy:
    """Return what a new run would take over from this one."""
    folder = find_run(root, run_id)
    own = ("output_dir", "resume_from_checkpoint", "overwrite_output_dir")
    config = {key: value for key, value in _given_config(folder).items() if key not in own}
    return Copy(form=read_yaml(folder / FORM_FILE), config=config)


def read_config(run_dir: Path) -> dict[str, Any]:
    """Return the most complete configuration that a run left: the resolved one, else what it was told."""
    return read_yaml(run_dir / RESOLVED_CONFIG) or _given_config(run_dir)


def _given_config(run_dir: Path) -> dict[str, Any]:
    """Return what a run was told; of a run of the command line, the part of its record that was set."""
    for name in CONFIG_FILES.values():
        config = read_yaml(run_dir / name)
        if config:
            return config
    try:
        text = (run_dir / RESOLVED_CONFIG).read_text(encoding="utf-8")
    except OSError:
        return {}
    head = re.split(r"^# (?:Derived from|Defaults)", text, maxsplit=1, flags=re.MULTILINE)[0]
    values = load_yaml(head)
    return values if isinstance(values, dict) else {}


def _run_folders(folder: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    try:
        children = sorted(item for item in folder.iterdir() if not item.name.startswith((".", "_")))
    except OSError:
        return
    for child in children:
        if child.is_symlink() or not child.is_dir():
            continue
        if is_run(child):
            yield child
        elif depth > 1:
            yield from _run_folders(child, depth - 1)


def _read_row(root: Path, folder: Path) -> RunRow | None:
    """Return the row of a folder; None when it is deleted at this moment."""
    record = read_record(folder)
    try:
        return RunRow(
            run_id=folder.relative_to(root).as_posix(),
            run_dir=folder,
            state=_state(folder, record),
            command=record.command if record is not None else "train",
            config=_given_config(folder),
            changed=_changed(folder, read_record(folder)),
        )
    except OSError:
        return None


def _state(folder: Path, record: Record | None) -> State:
    return state_by_files(folder) if record is None else state_of(refresh(folder, record))


def _changed(folder: Path, record: Record | None) -> float:
    if record is None:
        return folder.stat().st_mtime
    return record.ended or record.started or record.created


def _matches(row: RunRow, words: Sequence[str]) -> bool:
    hay = f"{row.run_id} {row.state} {row.command} {row.config}".lower()
    return all(word in hay for word in words)


def _turned(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    turned: dict[str, dict[str, Any]] = {}
    for run_id, row in table.items():
        for key, value in row.items():
            turned.setdefault(key, {})[run_id] = value
    return turned


def _remove_empty_parents(root: Path, folder: Path) -> None:
    while folder != root and folder.is_relative_to(root) and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
