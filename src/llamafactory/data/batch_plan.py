"""Which rows share a batch: so many rows, or as many as hold so many tokens.

A plan is made before the first step and is the same on all ranks. Every row comes once in an epoch; every rank gets
the same number of batches, the same in every epoch, so the steps are known ahead. Where rows cannot be dealt out
evenly, a batch is split; where there are too few rows even for that, an empty batch stands in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .lengths import SequenceLengths


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..hparams import DataArguments, TrainingArguments

    Numbers = NDArray[np.int64]

Order = Literal["random", "sequential", "group_by_length"]

LENGTH_GROUP = 50  # batches that are sorted together by group_by_length
ROUNDS = 4  # ways of sharing rows out to batches of tokens, used in turn; the order of batches is always a new one


@dataclass(frozen=True)
class BatchSize:
    """How large the batches of one device are."""

    num_rows: int = 1
    """Rows, unless `max_tokens` is given."""
    max_tokens: int | None = None
    """Tokens that a batch holds at most; a longer row is a batch of its own."""
    pads: bool = True
    """Every row takes as many tokens as the longest of its batch."""
    multiple: int = 1
    """Lengths are filled up to a multiple of this."""
    drops_rest: bool = False
    """Leaves out the rows at the end of an epoch that do not fill a batch on every rank; not with `max_tokens`."""


def batch_size_of(data: "DataArguments", training: "TrainingArguments", *, pads: bool, multiple: int = 1) -> BatchSize:
    """Return how large the training batches of a run are."""
    return BatchSize(
        num_rows=training.per_device_train_batch_size,
        max_tokens=data.max_batch_tokens,
        pads=pads,
        multiple=multiple,
        drops_rest=training.dataloader_drop_last,
    )


class BatchPlan:
    """The batches of all ranks, epoch by epoch: they depend on the rows' lengths, the seed and the epoch alone."""

    def __init__(
        self, lengths: SequenceLengths, size: BatchSize, order: Order = "random", seed: int = 0, num_ranks: int = 1
    ) -> None:
        self.lengths = lengths
        self.size = size
        self.order = order
        self.seed = seed
        self.num_ranks = num_ranks

    def epoch(self, number: int) -> "list[Numbers]":
        """Return all batches of an epoch as row numbers; batch i is taken by rank i % num_ranks. [] is a filler."""
        if self.size.max_tokens is None:
            batches = self._by_rows(number)
        else:
            batches = even_out(self._by_tokens(number % ROUNDS), self.num_batches * self.num_ranks)
        is_mixed = self.order == "group_by_length" or (self.order == "random" and self.size.max_tokens is not None)
        return self._shuffled(batches, number) if is_mixed else batches

    @cached_property
    def num_batches(self) -> int:
        """Batches of each rank in an epoch, fillers included."""
        if self.size.max_tokens is None:
            together = self.size.num_rows * self.num_ranks
            return self.num_rows // together if self.size.drops_rest else -(-self.num_rows // together)
        counts = [len(self._by_tokens(turn)) for turn in range(1 if self.order == "sequential" else ROUNDS)]
        return -(-max(counts) // self.num_ranks)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return len(self.lengths)

    @cached_property
    def costs(self) -> "NDArray[np.int64]":
        """Tokens of each row, [rows, columns]: of columns that are padded the longest counts, flat ones are added."""
        import numpy as np

        widths = self.lengths.padded if self.size.pads else self.lengths.total[:, None]
        return -(-widths // self.size.multiple) * self.size.multiple if self.size.pads else widths.astype(np.int64)

    @property
    def capacity(self) -> int:
        """Tokens that fit into a batch; a flat one is filled up as a whole."""
        return (self.size.max_tokens or 0) // self.size.multiple * self.size.multiple

    @property
    def cheapest_row(self) -> int:
        """The shortest row."""
        return int(self.lengths.total.argmin()) if self.num_rows else 0

    @cached_property
    def num_oversized(self) -> int:
        """Rows that are longer than a batch."""
        return int((self.costs.sum(axis=1) > self.capacity).sum())

    def tokens_of(self, batch: "Numbers") -> int:
        """Count the tokens of a batch, padding included."""
        costs = self.costs[batch]
        return int((costs.max(axis=0) * len(batch) if self.size.pads else costs).sum()) if len(batch) else 0

    def _by_rows(self, number: int) -> "list[Numbers]":
        """Cut the rows into batches of the same size; the ranks share what is left, some perhaps without a row."""
        import numpy as np

        order = self._row_order(number)
        num_even = len(order) // (self.size.num_rows * self.num_ranks) * self.size.num_rows * self.num_ranks
        batches = list(order[:num_even].reshape(-1, self.size.num_rows))
        has_rest = num_even < len(order) and not self.size.drops_rest
        return batches + (np.array_split(order[num_even:], self.num_ranks) if has_rest else [])

    def _by_tokens(self, number: int) -> "list[Numbers]":
        import numpy as np

        order = self._row_order(number)
        costs = self.costs[order]
        bounds = list(cut_padded(costs, self.capacity) if self.size.pads else cut_flat(costs[:, 0], self.capacity))
        return np.split(order, bounds[:-1]) if len(order) else []

    def _row_order(self, number: int) -> "Numbers":
        import numpy as np

        if self.order == "sequential":
            return np.arange(self.num_rows)
        order = np.random.default_rng([self.seed, number]).permutation(self.num_rows)
        if self.order == "random":
            return order
        width = LENGTH_GROUP * self._rows_per_batch
        total = self.lengths.total[order]
        parts = [slice(start, start + width) for start in range(0, len(order), width)]
        return np.concatenate([order[part][np.argsort(-total[part], kind="stable")] for part in parts] or [order])

    @property
    def _rows_per_batch(self) -> int:
        if self.size.max_tokens is None:
            return self.size.num_rows
        mean = int(self.lengths.total.sum()) / max(self.num_rows, 1)
        return max(int(self.size.max_tokens / max(mean, 1)), 1)

    def _shuffled(self, batches: "list[Numbers]", number: int) -> "list[Numbers]":
        """Shuffle; what the ranks take at the same time stays together, since those batches take equally long."""
        import numpy as np

        starts = np.random.default_rng([self.seed, number, 1]).permutation(len(batches) // self.num_ranks)
        return [batch for start in (starts * self.num_ranks).tolist() for batch in batches[start:][: self.num_ranks]]


def cut_flat(costs_R: "Numbers", capacity: int) -> Iterator[int]:
    """Yield where batches end when rows are taken in order, as long as their tokens fit."""
    import numpy as np

    sums = np.cumsum(costs_R)
    start = 0
    while start < len(sums):
        taken = int(sums[start - 1]) if start else 0
        start = max(int(np.searchsorted(sums, taken + capacity, side="right")), start + 1)
        yield start


def cut_padded(costs_RC: "NDArray[Any]", capacity: int) -> Iterator[int]:
    """Yield where batches end when every row takes the places of the longest, in each column."""
    start = 0
    longest: list[int] = [0] * costs_RC.shape[1]
    for row, widths in enumerate(costs_RC.tolist()):
        grown = [max(pair) for pair in zip(longest, widths, strict=True)]
        if row > start and (row + 1 - start) * sum(grown) > capacity:
            yield row
            start, grown = row, widths
        longest = grown
    if len(costs_RC):
        yield len(costs_RC)


def even_out(batches: "list[Numbers]", count: int) -> "list[Numbers]":
    """Return count batches: those with the most rows are halved, and fillers stand in where no batch can be."""
    import numpy as np

    sizes = np.fromiter(map(len, batches), np.int64, len(batches))
    parts = np.ones(len(batches), np.int64)
    for _ in range(count - len(batches)):
        largest = int(np.argmax(sizes / parts))
        if sizes[largest] <= parts[largest]:
            break
        parts[largest] += 1
    pairs = zip(batches, parts.tolist(), strict=True)
    evened = [piece for batch, num in pairs for piece in (np.array_split(batch, num) if num > 1 else (batch,))]
    return evened + [np.zeros(0, np.int64)] * (count - len(evened))
