"""Prepared datasets on disk: rows.arrow and report.json in one folder per key, written aside and then renamed.

A file lock stands in for ranks: the first process that comes prepares, the others wait and read. So it works before
and without a process group, and no collective times out while a large dataset is prepared.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..extras.env import read_env
from .packing import LOSS_WEIGHTS
from .processor import ProcessedRow
from .report import PreparationReport


if TYPE_CHECKING:
    from datasets import Dataset

ROWS = "rows.arrow"
REPORT = "report.json"
HASH = "row_hash"
HashedRow = tuple[ProcessedRow, int]


def prepared(
    key: str, build: Callable[[], tuple[PreparationReport, Iterable[list[HashedRow]]]], overwrite: bool = False
) -> tuple["Dataset", PreparationReport, bool]:
    """Return the rows and the report stored under key, built first when they are not there; and whether they were."""
    root = read_env().cache_dir / "datasets"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / key
    with FileLock(root / f"{key}.lock"):
        is_hit = (folder / REPORT).is_file() and not (overwrite and read_env().is_main_process)
        if not is_hit:
            aside = root / f"{key}.part"
            shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
            aside.mkdir()
            try:
                report, batches = build()
                write_rows(aside / ROWS, batches)
                (aside / REPORT).write_text(json.dumps(report.to_dict()), encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return (*load(folder), is_hit)


def load(folder: Path) -> tuple["Dataset", PreparationReport]:
    """Read a folder; the rows stay on disk and are mapped into memory."""
    from datasets import Dataset

    report = PreparationReport.from_dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
    rows = Dataset.from_file(str(folder / ROWS))
    return rows if report.num_weighted else rows.remove_columns(LOSS_WEIGHTS), report


def write_rows(path: Path, batches: Iterable[list[HashedRow]]) -> None:
    """Write rows as an Arrow stream."""
    import pyarrow as pa

    filled = filter(None, batches)  # a batch without rows does not know its columns
    first = next(filled, [])
    with pa.OSFile(str(path), "wb") as sink:
        table = columns_of(first, may_weigh=True)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_batch(table)
            for batch in filled:
                writer.write_batch(columns_of(batch, may_weigh=True))


def columns_of(batch: Sequence[HashedRow], *, may_weigh: bool = False) -> Any:
    """Make an Arrow batch of rows, which are of one kind; may_weigh: a later batch may have weights of losses."""
    import numpy as np
    import pyarrow as pa

    prefix, more = (batch[0][0].prefix, batch[0][0].more or {}) if batch else ("", {})
    input_ids = list_array([row.input_ids for row, _ in batch], pa.int32())
    ones = pa.array(np.ones(len(input_ids.values), dtype=np.int8))
    columns: dict[str, Any] = {
        f"{prefix}input_ids": input_ids,
        f"{prefix}attention_mask": pa.ListArray.from_arrays(input_ids.offsets, ones),
        f"{prefix}labels": list_array([row.labels for row, _ in batch], pa.int32()),
    }
    for name, sample in more.items():
        values: list[Any] = [(row.more or {})[name] for row, _ in batch]
        columns[name] = pa.array(values, pa.bool_()) if isinstance(sample, bool) else list_array(values, pa.int32())
    weights = [row.weights for row, _ in batch]
    if may_weigh or any(own is not None for own in weights):
        columns[LOSS_WEIGHTS] = list_array(
            [own or () for own in weights], pa.float32(), [own is None for own in weights]
        )
    columns[HASH] = pa.array([number for _, number in batch], pa.int64())
    return pa.record_batch(columns)


def list_array(lists: Sequence[Sequence[float]], kind: Any, are_null: Sequence[bool] | None = None) -> Any:
    """Make an Arrow array of lists without a Python object per number on the way."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum([len(numbers) for numbers in lists], out=offsets[1:])
    flat = np.fromiter(chain.from_iterable(lists), dtype=kind.to_pandas_dtype(), count=int(offsets[-1]))
    mask = None if are_null is None else pa.array(are_null, pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind), mask=mask)
