"""How many rows a file holds, without making them: lines, and the counts that table formats write down themselves.

Only a JSON list has to be decoded for it. The counts equal what the readers of sources.py yield.
"""

import zlib
from collections.abc import Iterator
from typing import Any

from ..extras.errors import UserError
from .data_files import DataFile
from .json_rows import read_json_rows, starts_with_list


def count_rows(file: DataFile) -> int:
    """Return the number of rows of a file, at least one."""
    import pyarrow as pa

    try:
        num_rows = sum(sizes_of(file))
    except (EOFError, zlib.error, OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"The rows of {file} cannot be counted: {first}; check that it is whole.") from None
    if not num_rows:
        raise UserError(f"{file} holds no rows; an empty dataset cannot be used.")
    return num_rows


def sizes_of(file: DataFile) -> Iterator[int]:
    """Yield the sizes of the pieces that a file comes in."""
    if file.type == "parquet":
        yield from parquet_sizes(file)
    elif file.type == "arrow":
        yield from arrow_sizes(file)
    elif file.type == "csv":
        yield from csv_sizes(file)
    elif file.type in ("json", "jsonl") and holds_list(file):
        yield sum(1 for _ in read_json_rows(file))
    else:
        with file.open_text() as stream:  # as text, which has more kinds of line ends and blanks than bytes
            yield sum(1 for line in stream if line.strip())


def holds_list(file: DataFile) -> bool:
    """Tell whether a JSON file holds one list, not a row per line."""
    with file.open_text() as head:
        return starts_with_list(head)


def parquet_sizes(file: DataFile) -> Iterator[int]:
    """Read the count in the footer."""
    from pyarrow import parquet

    with file.open() as stream:
        yield parquet.ParquetFile(stream).metadata.num_rows


def arrow_sizes(file: DataFile) -> Iterator[int]:
    """Read the counts of the record batches, which stay on disk."""
    import pyarrow as pa

    with pa.memory_map(file.path) as source:
        for batch in arrow_batches(source):
            yield batch.num_rows


def arrow_batches(source: Any) -> Iterator[Any]:
    """Yield the record batches of an Arrow file, of either kind."""
    import pyarrow as pa

    try:
        return iter(pa.ipc.open_stream(source))
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(source)
        return (reader.get_batch(index) for index in range(reader.num_record_batches))


def csv_sizes(file: DataFile) -> Iterator[int]:
    """Split the file into rows; a line break within quotes does not end one."""
    from pyarrow import csv

    parse = csv.ParseOptions(newlines_in_values=True)
    with file.open() as stream, csv.open_csv(stream, parse_options=parse) as head:
        convert = csv.ConvertOptions(include_columns=head.schema.names[:1])
    with file.open() as stream, csv.open_csv(stream, parse_options=parse, convert_options=convert) as reader:
        for batch in reader:
            yield batch.num_rows
