"""`streaming: true`: rows are read and encoded while the run trains, in the same way as prepared ones.

Every process reads the rows in the same order and encodes its own only, so that each row comes once an epoch over all
ranks and worker processes. Nothing is agreed on between them: which rows make a batch follows from its number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..extras.errors import UserError
from .conversation import Conversation, FieldError, RowDropped
from .converter import Converter, get_dataset_converter
from .parser import DatasetAttr
from .preparation import hash_of, settle
from .processor import DatasetProcessor, ProcessedRow
from .report import PreparationReport
from .store import HASH, columns_of
from .stream_order import Mixture
from .stream_windows import NumberedRow, Shuffle


if TYPE_CHECKING:
    from ..hparams import DataArguments

HELD = "held out"
Arrangement = Literal["rows", "packed", "blocks", "mismatched"]


class Outcome(NamedTuple):
    """What became of one row."""

    part: int
    """The number of its dataset."""
    row: dict[str, Any] | None
    """Its columns, when it is used."""
    num_supervised: int
    is_truncated: bool
    reason: str
    """Why it is not used."""
    where: str

    @property
    def num_tokens(self) -> int:
        """Tokens of its (first) sequence."""
        ids = next((ids for name, ids in (self.row or {}).items() if name.endswith("input_ids")), ())
        return len(ids)


class Count(NamedTuple):
    """An outcome as the report needs it."""

    part: int
    num_tokens: int
    num_supervised: int
    is_truncated: bool
    reason: str
    where: str


@dataclass(frozen=True)
class RowEncoder:
    """Makes what the model gets of what was read, many rows at a time."""

    attrs: tuple[DatasetAttr, ...]
    """One for each dataset, with its layout known."""
    processor: DatasetProcessor
    data_args: "DataArguments"
    held: frozenset[int] = frozenset()
    """Hashes of rows that are held out; they are left out wherever they stand."""

    def encode(self, rows: Sequence[NumberedRow]) -> list[Outcome]:
        """Return an outcome for each row."""
        read = [self._read(*row) for row in rows]
        conversations = [item for item in read if isinstance(item, Conversation)]
        processed = iter(self.processor.process(conversations)) if conversations else iter(())
        settled = [
            settle(next(processed), row.where, self.data_args) if isinstance(item, Conversation) else item
            for item, (_, row) in zip(read, rows, strict=True)
        ]
        kept = [(item, 0) for item in settled if isinstance(item, ProcessedRow)]
        columns = iter(columns_of(kept).drop_columns(HASH).to_pylist()) if kept else iter(())
        return [
            Outcome(part, next(columns), item.num_supervised, item.is_truncated, "", row.where)
            if isinstance(item, ProcessedRow)
            else Outcome(part, None, 0, False, str(item), row.where)
            for item, (part, row) in zip(settled, rows, strict=True)
        ]

    def _read(self, part: int, row: Any) -> Conversation | RowDropped:
        try:
            conversation = self._converters[part](row.values)
        except RowDropped as reason:
            return reason
        except FieldError as error:
            raise UserError(f"{row.where}: {error}.") from None
        return RowDropped(HELD) if self.held and hash_of(conversation) in self.held else conversation

    @property
    def _converters(self) -> list[Converter]:
        return [get_dataset_converter(attr.formatting, attr) for attr in self.attrs]


@dataclass(frozen=True)
class StreamRows:
    """The rows of a run that streams; a reader (stream_readers.py) makes batches of them."""

    mixture: Mixture
    encoder: RowEncoder
    buffer_size: int
    cutoff_len: int
    reports: tuple[PreparationReport, ...]
    """One for each dataset; they count what has been trained on in the first epoch of this session."""
    arrangement: Arrangement = "rows"

    @property
    def num_rows(self) -> int | None:
        """Rows of an epoch; None when only reading them would tell."""
        return None if self.makes_rows else self.mixture.num_rows

    @property
    def makes_rows(self) -> bool:
        """Whether several examples share a row, so that the number of rows follows from their lengths."""
        return self.arrangement in ("packed", "blocks")

    def __len__(self) -> int:
        if self.num_rows is None:
            raise TypeError("a stream of unknown length")
        return self.num_rows

    def arranged(self, arrangement: Arrangement) -> "StreamRows":
        """Return the same rows, arranged in another way."""
        return replace(self, arrangement=arrangement)

    def shuffle(self, seed: int, is_random: bool) -> Shuffle:
        """Return how rows are shuffled; two are the least that can be compared or moved."""
        return Shuffle(max(self.buffer_size, 2), seed, is_random)

    def count(self, counts: Sequence[Count]) -> None:
        """Add rows to the report."""
        for item in counts:
            report = self.reports[item.part]
            report.num_read += 1
            if item.reason:
                report.drop(item.reason, item.where)
            else:
                report.num_truncated += item.is_truncated
                report.num_supervised += item.num_supervised
                report.lengths.append(item.num_tokens)
