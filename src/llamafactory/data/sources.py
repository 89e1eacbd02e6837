"""Rows from where they are: files on disk or in a cloud store, or a hub.

Files are read row by row here rather than through `load_dataset`: its errors are pyarrow's, which name neither file
nor row, and it merges the keys of differing objects (two tools with different arguments get each other's).
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from ..extras.errors import UserError
from .data_files import DataFile, digest_files, list_cloud_files, list_files
from .hubs import LOADERS, Access, digest_hub, load_hub
from .json_rows import read_json_rows
from .parser import DatasetAttr


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


def open_source(attr: DatasetAttr, access: Access | None = None) -> Source:
    """Find the rows of a dataset; nothing is read yet but what the digest needs."""
    if attr.load_from in LOADERS:
        return open_hub(attr, access or Access())
    if attr.load_from == "script":
        raise UserError(
            f"The dataset {attr} is made by a loading script, which is code that is not run here; "
            "save its rows as a file and give its entry a file_name."
        )
    listed = list_cloud_files if attr.load_from == "cloud_file" else list_files
    files = listed(attr.dataset_name, str(attr))
    return Source(str(attr), digest_files(files), lambda: read_files(files))


def open_hub(attr: DatasetAttr, access: Access) -> Source:
    """Load a dataset of a hub."""
    rows = load_hub(attr, access)

    def read() -> Iterator[Row]:
        for number, values in enumerate(rows, 1):
            yield Row(dict(values), f"{attr}, row {number}")

    return Source(str(attr), digest_hub(attr, rows), read)


def read_files(files: list[DataFile]) -> Iterator[Row]:
    """Yield the rows of all files."""
    for file in files:
        is_empty = True
        try:
            for row in READERS[file.type](file):
                is_empty = False
                yield row
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(f"{file} cannot be read: {first_line(error)}; check that it is whole.") from None
        if is_empty:
            raise UserError(f"{file} holds no rows; an empty dataset cannot be used.")


def read_json(file: DataFile) -> Iterator[Row]:
    """Yield the rows of a JSON or JSON lines file."""
    for number, (line, values) in enumerate(read_json_rows(file), 1):
        yield Row(values, f"{file}, row {number} (line {line})")


def read_text(file: DataFile) -> Iterator[Row]:
    """Yield a row {"text": ...} for every line that is not blank."""
    try:
        with file.open_text() as stream:
            for line, text in enumerate(stream, 1):
                if text.strip():
                    yield Row({"text": text.rstrip("\n")}, f"{file}, line {line}")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it as UTF-8.") from None


def read_csv(file: DataFile) -> Iterator[Row]:
    """Yield the rows of a CSV file; all values are text."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        parse = csv.ParseOptions(newlines_in_values=True)
        serial = csv.ReadOptions(use_threads=False)  # errors name the row
        with file.open() as stream, csv.open_csv(stream, serial, parse) as head:
            names = head.schema.names
        convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        with file.open() as stream, csv.open_csv(stream, serial, parse, convert) as reader:
            yield from read_batches(file, iter(reader))
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: {first_line(error)}; mend the CSV.") from None


def read_parquet(file: DataFile) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with file.open() as stream:
            yield from read_batches(file, parquet.ParquetFile(stream).iter_batches(batch_size=1000))
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a Parquet file: {first_line(error)}.") from None


def read_arrow(file: DataFile) -> Iterator[Row]:
    """Yield the rows of an Arrow file, of either kind."""
    import pyarrow as pa

    try:
        with pa.memory_map(file.path) if file.system is None else pa.PythonFile(file.open()) as source:
            try:
                batches = iter(pa.ipc.open_stream(source))
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            yield from read_batches(file, batches)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not an Arrow file: {first_line(error)}.") from None


def read_batches(file: DataFile, batches: Iterator[Any]) -> Iterator[Row]:
    """Yield the rows of pyarrow batches."""
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    for number, values in enumerate(rows, 1):
        yield Row(values, f"{file}, row {number}")


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


READERS: dict[str, Callable[[DataFile], Iterator[Row]]] = {
    "arrow": read_arrow,
    "csv": read_csv,
    "json": read_json,
    "jsonl": read_json,
    "parquet": read_parquet,
    "txt": read_text,
}
