"""A new entry of dataset_info.json: which columns and tags it names is read off the first row."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..extras.constants import DATASET_INFO
from ..extras.errors import UserError
from .parser import COLUMNS, DEFAULTS, TAGS, DatasetAttr, read_dataset_info


def entry_of(attr: DatasetAttr, file_name: str) -> dict[str, Any]:
    """Return the shortest entry that reads as this layout."""
    entry: dict[str, Any] = {"file_name": file_name}
    if attr.formatting != "alpaca":
        entry["formatting"] = attr.formatting
    if attr.ranking:
        entry["ranking"] = True
    usual = {item.name: item.default for item in fields(DatasetAttr)} | dict(DEFAULTS[attr.formatting])
    values = asdict(attr)
    for key, names in (("columns", COLUMNS), ("tags", TAGS)):
        own = {name: values[name] for name in names if values[name] != usual[name]}
        if own:
            entry[key] = own
    return entry


def register(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Add an entry to the table of a folder; the file is whole at every moment, and no other entry changes."""
    path = folder / DATASET_INFO
    with FileLock(folder / f".{DATASET_INFO}.lock"):
        table = dict(read_dataset_info(str(folder)))
        if name in table:
            raise UserError(f"{path} has a dataset {name!r} already; choose another name.")
        table[name] = dict(entry)
        write_whole(path, json.dumps(table, ensure_ascii=False, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old content or the new one, and never a part."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        Path(draft).chmod(mode)
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)
