"""A file from the browser becomes a dataset: named, checked by reading every row, registered; nothing is replaced."""

import re
import shutil
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from ...data.conversation import FieldError, RowDropped
from ...data.converter import check_columns, detect_layout, get_dataset_converter
from ...data.parser import DatasetAttr, read_dataset_info
from ...data.preparation import describe_layout
from ...data.registering import entry_of, register
from ...data.sources import open_source
from ...extras.errors import UserError


UPLOAD_TYPES = ("json", "jsonl", "csv", "parquet", "txt")
MAX_NAME = 64
MIB = 2**20
UNSAFE = re.compile(r"[^\w-]+", re.UNICODE)


@dataclass(frozen=True)
class Registered:
    """What became of an upload."""

    name: str
    file: Path
    layout: str
    num_rows: int
    num_usable: int
    reasons: dict[str, int]
    """Why rows cannot be used, and how many."""


def add_upload(upload: Path, shown_name: str, folder: Path, max_mib: int) -> Registered:
    """Check a file and put it into the folder of the datasets under a name that is free.

    `upload` is where the page has put it, `shown_name` what the browser calls it.
    """
    name, kind = safe_name(shown_name)
    size = upload.stat().st_size
    if size > max_mib * MIB:
        raise UserError(
            f"The file has {size / MIB:.1f} MiB; at most {max_mib} can be uploaded here. Copy a larger one into "
            f"{folder} and name its path as the dataset."
        )
    try:
        attr, report = check_rows(upload, kind, name)
    except UserError as error:
        raise UserError(str(error).replace(str(upload), f"{name}.{kind}")) from None
    except RecursionError:
        raise UserError(f"A row of {name}.{kind} is nested too deeply to be read.") from None
    folder.mkdir(parents=True, exist_ok=True)
    taken = set(read_dataset_info(str(folder)))
    path, name = _claim(folder, name, kind, taken)
    try:
        with upload.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        register(folder, name, entry_of(attr, path.name))
    except BaseException:  # a stop too: no file stays that is not registered
        path.unlink(missing_ok=True)
        raise
    return replace(report, name=name, file=path)


def safe_name(shown_name: str) -> tuple[str, str]:
    """Return a plain name and the type of an uploaded file, whatever the browser calls it."""
    last = PurePath(shown_name.replace("\\", "/")).name
    stem, _, suffix = last.rpartition(".")
    kind = suffix.lower()
    if kind not in UPLOAD_TYPES or not stem:
        raise UserError(f"{last[:80]!r} is no file of rows; upload one that ends in {', '.join(UPLOAD_TYPES)}.")
    name = UNSAFE.sub("_", stem).strip("_-")[:MAX_NAME]
    return name or "upload", kind


def check_rows(file: Path, kind: str, name: str) -> tuple[DatasetAttr, Registered]:
    """Read every row; return the layout and the counts, or say what is wrong with which row."""
    attr = _attr_of(file, kind, name)
    convert: Any = None
    num_rows = 0
    reasons: dict[str, int] = {}
    for row in open_source(attr).read():
        if convert is None:
            attr = replace(detect_layout(row.values, attr), is_detected=False)
            check_columns(row.values, attr)
            convert = get_dataset_converter(attr.formatting, attr)
        num_rows += 1
        try:
            convert(row.values)
        except RowDropped as reason:
            reasons[str(reason)] = reasons.get(str(reason), 0) + 1
        except FieldError as error:
            raise UserError(f"Row {num_rows}: {error}.") from None
    num_usable = num_rows - sum(reasons.values())
    if not num_usable:
        raise UserError(f"No row of the file can be used: {'; '.join(reasons) or 'it is empty'}.")
    return attr, Registered(name, file, describe_layout(attr), num_rows, num_usable, reasons)


def _attr_of(file: Path, kind: str, name: str) -> DatasetAttr:
    if file.suffix.lower() != f".{kind}":
        raise UserError(f"The upload should end in .{kind}; send it once more.")
    return DatasetAttr("file", str(file), name=name, is_detected=True)


def _claim(folder: Path, name: str, kind: str, taken: set[str]) -> tuple[Path, str]:
    """Create an empty file under the first name that neither a file nor an entry has."""
    numbered = (name if number == 1 else f"{name}_{number}" for number in count(1))
    while True:
        candidate = next(numbered)
        path = folder / f"{candidate}.{kind}"
        if candidate in taken:
            continue
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path, candidate
