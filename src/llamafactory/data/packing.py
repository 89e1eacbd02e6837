"""Packing: several documents share a row, and none of them sees another.

Rows are chosen over the whole epoch, not within a batch of the preparation: best fit, longest document first, which
leaves almost nothing empty. Nothing is padded to the capacity, and no document is cut.

A packed row is `input_ids`, `labels` and `position_ids`, and `loss_weights` where a document has some. The positions
start again with each document, and that is all a model needs to keep documents apart (batch.py). The first token of a
document is nobody's target.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from ..extras.constants import IGNORE_INDEX
from ..extras.logging import get_logger
from .lengths import SequenceLengths, column_lengths


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = get_logger(__name__)

LOSS_WEIGHTS = "loss_weights"
"""The column that says what the loss of each label is multiplied by; missing or None where it is 1 everywhere."""


class PackedRow(TypedDict):
    """Documents in one row."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    loss_weights: NotRequired[list[float]]


class PackedRows:
    """A dataset of packed rows over a dataset of documents; a row is put together when it is asked for.

    Which documents share a row depends on the lengths, the capacity and the seed alone, and stays for all epochs:
    the number of rows is known from the start and a resumed run meets the same ones. Their order is the sampler's.
    """

    def __init__(self, documents: Any, capacity: int, seed: int = 0) -> None:
        import numpy as np

        lengths = column_lengths(documents)
        rows = sorted(sorted(row) for row in pack_lengths(lengths, capacity, seed))
        self.documents = documents
        self.capacity = capacity
        self.num_tokens = int(lengths.sum())
        self._numbers = np.fromiter((number for row in rows for number in row), np.int64, len(lengths))
        self._bounds = np.cumsum([0, *map(len, rows)])
        self._lengths = np.fromiter((int(lengths[row].sum()) for row in rows), np.int64, len(rows))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> PackedRow:
        return join_documents([self.documents[number] for number in self.numbers(index)])

    def numbers(self, index: int) -> list[int]:
        """Return which documents stand in a row, in their order."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return self._numbers[self._bounds[index] : self._bounds[index + 1]].tolist()

    def sequence_lengths(self) -> SequenceLengths:
        """Return the tokens of each row."""
        return SequenceLengths({"": self._lengths})

    @property
    def efficiency(self) -> float:
        """The share of the rows' capacity that is filled."""
        return self.num_tokens / max(len(self) * self.capacity, 1)

    def describe(self) -> str:
        """Say it in one line."""
        return (
            f"Packing: {len(self.documents)} documents in {len(self)} rows of at most {self.capacity} tokens, "
            f"{self.efficiency:.1%} full; documents in one row cannot see each other"
        )


def pack_dataset(documents: Any, capacity: int, seed: int) -> PackedRows:
    """Pack a dataset and say how well it went."""
    packed = PackedRows(documents, capacity, seed)
    logger.info(packed.describe())
    return packed


def pack_lengths(lengths: "Sequence[int] | NDArray[np.integer[Any]]", capacity: int, seed: int = 0) -> list[list[int]]:
    """Return rows of indices: each document goes into the fullest row that still has room for it, longest first.

    Equal lengths come in an order drawn from the seed, so that neighbours in the data do not share rows. What room
    rows have left is kept in the bits of one number, which makes a step a few operations at any number of rows.
    """
    import numpy as np

    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and not 0 < sizes.min() <= sizes.max() <= capacity:
        raise ValueError(
            f"Documents of {sizes.min()} to {sizes.max()} tokens cannot be packed into rows of {capacity}."
        )
    shuffled = np.random.default_rng(seed).permutation(sizes.size)
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]

    rows: list[list[int]] = []
    rows_by_room: dict[int, list[list[int]]] = {}
    rooms = 0  # bit r is set: some row has room for r tokens
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, []
            rows.append(row)
        row.append(index)
        rows_by_room.setdefault(room - size, []).append(row)
        rooms |= 1 << (room - size)
    return rows


def join_documents(documents: Sequence[Mapping[str, Any]]) -> PackedRow:
    """Put documents end to end; one that is itself packed keeps its inner bounds."""
    row = PackedRow(input_ids=[], labels=[], position_ids=[])
    for document in documents:
        ids = document["input_ids"]
        row["input_ids"] += ids
        row["labels"] += [IGNORE_INDEX, *document["labels"][1:]]
        row["position_ids"] += document.get("position_ids") or range(len(ids))
    if any(document.get(LOSS_WEIGHTS) is not None for document in documents):
        row["loss_weights"] = [weight for document in documents for weight in [0.0, *weights_of(document)[1:]]]
    return row


def weights_of(document: Mapping[str, Any]) -> Sequence[float]:
    """Return what the loss of each label is multiplied by; 0 where there is no label."""
    given = document.get(LOSS_WEIGHTS)
    return [float(label != IGNORE_INDEX) for label in document["labels"]] if given is None else given
