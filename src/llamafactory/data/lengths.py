"""How many tokens the rows of a dataset have, told without reading their ids where that is possible."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from ..extras.constants import IGNORE_INDEX


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

READ_AT_ONCE = 10_000  # rows whose lengths are looked at together
IDS = "input_ids"
TOGETHER = ("chosen_", "rejected_")  # padded to the longest of both


@dataclass(frozen=True)
class SequenceLengths:
    """Tokens of the sequences of each row: one, or two where a row is a pair. By prefix of the column, [rows]."""

    by_prefix: "dict[str, Numbers]"

    def __len__(self) -> int:
        return len(next(iter(self.by_prefix.values())))

    @cached_property
    def total(self) -> "Numbers":
        """Tokens of a row, [rows]."""
        import numpy as np

        return np.stack(list(self.by_prefix.values())).sum(axis=0).astype(np.int64)

    @cached_property
    def longest(self) -> "Numbers":
        """Tokens of the longest sequence of a row, [rows]."""
        import numpy as np

        return np.stack(list(self.by_prefix.values())).max(axis=0)

    @property
    def padded(self) -> "Numbers":
        """[rows, sequences]: a batch pads each of these columns to its longest; both answers of a pair alike."""
        import numpy as np

        if set(self.by_prefix) == set(TOGETHER):
            return np.stack([self.longest, self.longest], axis=1)
        return np.stack(list(self.by_prefix.values()), axis=1)


@runtime_checkable
class KnowsLengths(Protocol):
    """A dataset that makes its rows when they are asked for, and knows beforehand how long they will be."""

    def sequence_lengths(self) -> SequenceLengths: ...


def sequence_lengths(rows: Any) -> SequenceLengths:
    """Return the lengths of all rows."""
    if isinstance(rows, KnowsLengths):
        return rows.sequence_lengths()
    names = rows.column_names if hasattr(rows, "column_names") else list(rows[0]) if len(rows) else [IDS]
    return SequenceLengths(
        {name.removesuffix(IDS): column_lengths(rows, name) for name in names if name.endswith(IDS)}
    )


def without_lengths(num_rows: int) -> SequenceLengths:
    """Stand in for lengths that nobody needs."""
    import numpy as np

    return SequenceLengths({"": np.ones(num_rows, dtype=np.int64)})


def column_lengths(rows: Any, name: str = IDS) -> "Numbers":
    """Return the number of values in each list of a column; an Arrow dataset is asked for its offsets only."""
    import numpy as np

    if not hasattr(rows, "select_columns"):
        return np.asarray([len(row[name]) for row in rows], dtype=np.int64)

    import pyarrow.compute as pc

    compute: Any = pc  # its functions are made at import, unknown to type checkers
    column = rows.select_columns(name).with_format("arrow")
    parts = [compute.list_value_length(table[name]).to_numpy() for table in column.iter(READ_AT_ONCE)]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)


def prompt_lengths(rows: Any) -> "Numbers":
    """Return the number of tokens before the answer, for rows that learn one answer at their end."""
    import numpy as np

    if not hasattr(rows, "select_columns"):
        return np.asarray([cast(list[int], row["labels"]).count(IGNORE_INDEX) for row in rows], dtype=np.int64)
    counts: list[Any] = []
    for table in rows.select_columns("labels").with_format("arrow").iter(READ_AT_ONCE):
        lists = table["labels"].combine_chunks()
        starts = lists.offsets.to_numpy()
        is_prompt = lists.values.to_numpy() == IGNORE_INDEX
        sums = np.concatenate([[0], np.cumsum(is_prompt)])
        counts.append(sums[starts[1:]] - sums[starts[:-1]])
    return np.concatenate(counts).astype(np.int64) if counts else np.zeros(0, dtype=np.int64)
