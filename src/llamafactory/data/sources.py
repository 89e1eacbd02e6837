"""Rows from where they are: files on disk or in a cloud store, or a hub.

A source can be read from the middle on, so that a stream that goes on after a stop does not decode what it has seen.
Files are read row by row here rather than through `load_dataset`: its errors are pyarrow's, which name neither file
nor row, and it merges the keys of differing objects (two tools with different arguments get each other's).
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, Protocol

from ..extras.errors import UserError
from .data_files import DataFile, digest_files, list_cloud_files, list_files
from .hubs import LOADERS, Access, digest_hub, load_hub
from .json_rows import read_json_rows
from .parser import DatasetAttr
from .row_counts import arrow_batches, count_rows


ROWS_AT_ONCE = 1000  # rows of a table that are Python objects at the same time


class Row(NamedTuple):
    """One row and where it stands."""

    values: dict[str, Any]
    where: str


class Source(Protocol):
    """Rows that can be read, from the start or from the middle."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def digest(self) -> str:
        """Tells one content from another."""
        ...

    @property
    def num_rows(self) -> int | None:
        """How many rows there are; None when only reading all of them would tell, from far away."""
        ...

    def read(self, start: int = 0) -> Iterator[Row]:
        """Yield the rows from number `start` on, counted from 0."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Rows of files."""

    name: str
    files: tuple[DataFile, ...]

    @property
    def digest(self) -> str:
        """Hash of the files' content."""
        return digest_files(list(self.files))

    @cached_property
    def counts(self) -> tuple[int, ...] | None:
        """Rows of each file; None for files in a cloud store."""
        if any(file.system is not None for file in self.files):
            return None
        return tuple(count_rows(file) for file in self.files)

    @property
    def num_rows(self) -> int | None:
        """Rows of all files."""
        return None if self.counts is None else sum(self.counts)

    def read(self, start: int = 0) -> Iterator[Row]:
        """Yield rows; files before the first row that is wanted are not opened when their rows have been counted."""
        if not start or self.counts is None:
            return islice(read_files(self.files), start, None)
        first = 0
        while first < len(self.files) and start >= self.counts[first]:
            start -= self.counts[first]
            first += 1
        return read_files(self.files[first:], start)


@dataclass(frozen=True)
class HubSource:
    """Rows of a hub dataset."""

    attr: DatasetAttr
    rows: Any = field(repr=False)

    @property
    def name(self) -> str:
        """What the user calls it."""
        return str(self.attr)

    @property
    def digest(self) -> str:
        """Hash of what the hub says of it."""
        return digest_hub(self.attr, self.rows)

    @property
    def num_rows(self) -> int | None:
        """Known once it was downloaded."""
        return len(self.rows) if hasattr(self.rows, "__len__") else None

    def read(self, start: int = 0) -> Iterator[Row]:
        """Yield rows."""
        rows = self.rows.skip(start) if start else self.rows
        for number, values in enumerate(rows, start + 1):
            yield Row(dict(values), f"{self.attr}, row {number}")


def open_source(attr: DatasetAttr, access: Access | None = None, *, streaming: bool = False) -> Source:
    """Find the rows of a dataset; files are not read yet, a hub dataset is downloaded unless it is streamed."""
    if attr.load_from in LOADERS:
        return HubSource(attr, load_hub(attr, access or Access(), streaming=streaming))
    if attr.load_from == "script":
        raise UserError(
            f"The dataset {attr} is made by a loading script, which is code that is not run here; "
            "save its rows as a file and give its entry a file_name."
        )
    listed = list_cloud_files if attr.load_from == "cloud_file" else list_files
    return FileSource(str(attr), tuple(listed(attr.dataset_name, str(attr))))


def read_files(files: Sequence[DataFile], start: int = 0) -> Iterator[Row]:
    """Yield the rows of all files; `start` rows of the first one are left out, which must hold more."""
    for file in files:
        is_empty = True
        try:
            for row in READERS[file.type](file, start):
                is_empty = False
                yield row
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(f"{file} cannot be read: {first_line(error)}; check that it is whole.") from None
        if is_empty:
            raise UserError(f"{file} holds no rows; an empty dataset cannot be used.")
        start = 0


def read_json(file: DataFile, start: int = 0) -> Iterator[Row]:
    """Yield the rows of a JSON or JSON lines file."""
    for number, (line, values) in enumerate(read_json_rows(file, start), start + 1):
        yield Row(values, f"{file}, row {number} (line {line})")


def read_text(file: DataFile, start: int = 0) -> Iterator[Row]:
    """Yield a row {"text": ...} for every line that is not blank."""
    try:
        with file.open_text() as stream:
            filled = ((line, text) for line, text in enumerate(stream, 1) if text.strip())
            for line, text in islice(filled, start, None):
                yield Row({"text": text.rstrip("\n")}, f"{file}, line {line}")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it as UTF-8.") from None


def read_csv(file: DataFile, start: int = 0) -> Iterator[Row]:
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
            yield from read_batches(file, iter(reader), start)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: {first_line(error)}; mend the CSV.") from None


def read_parquet(file: DataFile, start: int = 0) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with file.open() as stream:
            table = parquet.ParquetFile(stream)
            sizes = [table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)]
            groups = [index for index in range(len(sizes)) if sum(sizes[: index + 1]) > start]
            skipped = sum(sizes[: groups[0]]) if groups else 0
            batches = table.iter_batches(batch_size=1000, row_groups=groups)
            yield from read_batches(file, batches, start, skipped)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a Parquet file: {first_line(error)}.") from None


def read_arrow(file: DataFile, start: int = 0) -> Iterator[Row]:
    """Yield the rows of an Arrow file, of either kind."""
    import pyarrow as pa

    try:
        with pa.memory_map(file.path) if file.system is None else pa.PythonFile(file.open()) as source:
            yield from read_batches(file, arrow_batches(source), start)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not an Arrow file: {first_line(error)}.") from None


def read_batches(file: DataFile, batches: Iterator[Any], start: int = 0, number: int = 0) -> Iterator[Row]:
    """Yield the rows of pyarrow batches from row `start` on; the first batch begins with row `number` of the file."""
    for batch in batches:
        for offset in range(max(start - number, 0), batch.num_rows, ROWS_AT_ONCE):
            rows: list[dict[str, Any]] = batch.slice(offset, ROWS_AT_ONCE).to_pylist()
            for place, values in enumerate(rows, number + offset + 1):
                yield Row(values, f"{file}, row {place}")
        number += batch.num_rows


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class Reader(Protocol):
    """Yields the rows of one file from number `start` on."""

    def __call__(self, file: DataFile, start: int = 0) -> Iterator[Row]: ...


READERS: dict[str, Reader] = {
    "arrow": read_arrow,
    "csv": read_csv,
    "json": read_json,
    "jsonl": read_json,
    "parquet": read_parquet,
    "txt": read_text,
}
