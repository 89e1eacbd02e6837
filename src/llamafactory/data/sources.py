"""Rows from where they are: local files and folders, or the Hugging Face hub.

Local files are read row by row here rather than through `load_dataset`: its errors are pyarrow's, which name neither
file nor row, and it merges the keys of differing objects (two tools with different arguments get each other's).
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..extras.errors import UserError
from .json_rows import read_json_rows
from .parser import FILE_TYPES, DatasetAttr, is_data_file


ORIGINS = {
    "ms_hub": "ModelScope",
    "om_hub": "Modelers",
    "cloud_file": "a cloud store",
    "script": "a loading script",
}


class Row(NamedTuple):
    """One row and where it stands."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Source:
    """Rows that can be read, and a digest of their content."""

    name: str
    digest: str
    read: Callable[[], Iterator[Row]]


def open_source(attr: DatasetAttr, cache_dir: str | None = None, token: str | None = None) -> Source:
    """Find the rows of a dataset; nothing is read yet but what the digest needs."""
    if attr.load_from == "hf_hub":
        return open_hub(attr, cache_dir, token)
    if attr.load_from != "file":
        raise UserError(
            f"The dataset {attr} comes from {ORIGINS[attr.load_from]}, which this version does not read; "
            "download it and give its entry a file_name."
        )
    paths = list_files(attr)
    return Source(str(attr), digest_files(paths), lambda: read_files(paths))


def list_files(attr: DatasetAttr) -> list[Path]:
    """Return the files of a dataset in the order of their names; all must be of one type."""
    path = Path(attr.dataset_name)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(child for child in path.iterdir() if child.is_file() and is_data_file(child))
    else:
        raise UserError(f"The file {path} of the dataset {attr} does not exist; check file_name and dataset_dir.")

    types = sorted({file_type(file) for file in files})
    if len(types) != 1 or types[0] not in FILE_TYPES:
        found = ", ".join(types) or "no files"
        raise UserError(
            f"The dataset {attr} ({path}) must hold files of one type of {', '.join(FILE_TYPES)}, not {found}."
        )
    return files


def digest_files(paths: list[Path]) -> str:
    """Hash names and content."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest() + path.suffix.encode())
    return total.hexdigest()


def read_files(paths: list[Path]) -> Iterator[Row]:
    """Yield the rows of all files."""
    for path in paths:
        is_empty = True
        for row in READERS[file_type(path)](path):
            is_empty = False
            yield row
        if is_empty:
            raise UserError(f"{path} holds no rows; an empty dataset cannot be used.")


def file_type(path: Path) -> str:
    """Return the suffix without its dot."""
    return path.suffix.lstrip(".").lower()


def read_json(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON or JSON lines file."""
    for number, (line, values) in enumerate(read_json_rows(path), 1):
        yield Row(values, f"{path}, row {number} (line {line})")


def read_text(path: Path) -> Iterator[Row]:
    """Yield a row {"text": ...} for every line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for line, text in enumerate(stream, 1):
                if text.strip():
                    yield Row({"text": text.rstrip("\n")}, f"{path}, line {line}")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def read_csv(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file; all values are text."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        parse = csv.ParseOptions(newlines_in_values=True)
        with csv.open_csv(path, parse_options=parse) as head:
            names = head.schema.names
        convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        with csv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
            yield from read_batches(path, iter(reader))
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {first_line(error)}; mend the CSV.") from None


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        yield from read_batches(path, parquet.ParquetFile(path).iter_batches(batch_size=1000))
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {first_line(error)}.") from None


def read_arrow(path: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow file, of either kind."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                batches = iter(pa.ipc.open_stream(source))
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            yield from read_batches(path, batches)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not an Arrow file: {first_line(error)}.") from None


def read_batches(path: Path, batches: Iterator[Any]) -> Iterator[Row]:
    """Yield the rows of pyarrow batches."""
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    for number, values in enumerate(rows, 1):
        yield Row(values, f"{path}, row {number}")


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def open_hub(attr: DatasetAttr, cache_dir: str | None, token: str | None) -> Source:
    """Load a dataset of the Hugging Face hub."""
    import datasets

    try:
        rows = datasets.load_dataset(
            attr.dataset_name,
            name=attr.subset,
            data_dir=attr.folder,
            split=attr.split,
            cache_dir=cache_dir,
            token=token,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"The dataset {attr} could not be loaded from the hub: {first_line(error)}.") from None

    def read() -> Iterator[Row]:
        for number, values in enumerate(rows, 1):
            yield Row(dict(values), f"{attr}, row {number}")

    files = [(Path(item["filename"]).name, Path(item["filename"]).stat().st_size) for item in rows.cache_files]
    digest = hashlib.sha256(repr((attr.dataset_name, attr.split, len(rows), files)).encode()).hexdigest()
    return Source(str(attr), digest, read)


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "arrow": read_arrow,
    "csv": read_csv,
    "json": read_json,
    "jsonl": read_json,
    "parquet": read_parquet,
    "txt": read_text,
}
