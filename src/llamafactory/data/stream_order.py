"""The order of the rows of a stream before they are shuffled: several datasets, repeated and mixed as a run asks.

It is the order that mixing.py gives to prepared rows, told without holding any: the same rows of each dataset, end to
end or alternating. Where the numbers of rows are known, an order can be entered in the middle.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from ..extras.errors import UserError
from .mixing import STOPS, draw_rounds
from .parser import DatasetAttr
from .sources import Row, Source


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..hparams.data_args import MixStrategy

    Numbers = NDArray[np.int64]


def no_numbers() -> "Numbers":
    """Return an empty array."""
    import numpy as np

    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class StreamPart:
    """The rows of one dataset that can be learned."""

    name: str
    attr: DatasetAttr
    """Its layout is known."""
    source: Source
    limit: int | None = None
    """Only so many rows from the head."""
    held: "Numbers" = field(default_factory=no_numbers)
    """Numbers of the rows that are held out, in order."""

    @cached_property
    def num_rows(self) -> int | None:
        """How many rows are left; None when nobody knows."""
        count = self.source.num_rows
        if count is None:
            return None
        return (count if self.limit is None else min(count, self.limit)) - len(self.held)

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Yield all rows with their numbers in the source, those held out included."""
        return zip(
            range(start, self.limit if self.limit is not None else 2**63), self.source.read(start), strict=False
        )

    def read(self, start: int = 0) -> Iterator[Row]:
        """Yield the rows that are left, from the start-th of them on."""
        import numpy as np

        gaps = np.searchsorted(self.held - np.arange(len(self.held)), start, side="right")
        held = iter(self.held[int(gaps) :].tolist())
        next_held = next(held, -1)
        for number, row in self.numbered(start + int(gaps)):
            if number == next_held:
                next_held = next(held, -1)
            else:
                yield row


@dataclass(frozen=True)
class Repeated:
    """The rows that one dataset gives in an epoch: each once, or `amount` rows in as many rounds as that takes."""

    part: StreamPart
    amount: int | None = None
    seed: int = 0

    @property
    def num_rows(self) -> int | None:
        """Rows of an epoch."""
        return self.part.num_rows if self.amount is None else self.amount

    def read(self, start: int = 0) -> Iterator[Row]:
        """Yield the rows from the start-th on."""
        if self.amount is None:
            return self.part.read(start)
        if self.part.num_rows is None:
            return islice(self._over_and_over(), start, self.amount)
        return self._rounds(start, self.part.num_rows, self.amount)

    def _over_and_over(self) -> Iterator[Row]:
        while True:
            yield from self.part.read()

    def _rounds(self, start: int, num_rows: int, amount: int) -> Iterator[Row]:
        """All rounds take all rows but the last, which takes the rows that prepared data would."""
        num_whole = amount // num_rows
        for number in range(start // num_rows, num_whole):
            yield from self.part.read(max(start - number * num_rows, 0))
        last = draw_rounds(num_rows, amount, self.seed)[num_whole * num_rows :]
        picked = last[max(start - num_whole * num_rows, 0) :].tolist()
        if picked:
            rows = enumerate(self.part.read(picked[0]), picked[0])
            wanted = iter(picked)
            next_wanted = next(wanted)
            for number, row in rows:
                if number == next_wanted:
                    yield row
                    if (next_wanted := next(wanted, -1)) < 0:
                        return


@dataclass(frozen=True)
class Mixture:
    """The rows of an epoch in their first order, each with the number of its dataset."""

    parts: tuple[Repeated, ...]
    strategy: "MixStrategy" = "concat"
    chances: tuple[float, ...] | None = None
    """One for each part, adding up to 1."""
    seed: int = 0

    @cached_property
    def num_rows(self) -> int | None:
        """Rows of an epoch; None when nobody knows."""
        lengths = [part.num_rows for part in self.parts]
        if None in lengths:
            return None
        if not self._alternates:
            return sum(length or 0 for length in lengths)
        counts = Counts([length or 0 for length in lengths])
        total = 0
        for number in self._order(counts.is_used_up):
            counts.add(number)
            total += 1
        return total

    def read(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Yield (number of the dataset, row) from the start-th row on."""
        return self._alternating(start) if self._alternates else self._end_to_end(start)

    @property
    def _alternates(self) -> bool:
        return self.strategy in STOPS and len(self.parts) > 1

    def _end_to_end(self, start: int) -> Iterator[tuple[int, Row]]:
        for number, part in enumerate(self.parts):
            if part.num_rows is not None and start >= part.num_rows:
                start -= part.num_rows
                continue
            for row in part.read(start if part.num_rows is not None else 0):
                if part.num_rows is None and start:
                    start -= 1
                else:
                    yield number, row
            start = 0 if part.num_rows is not None else start

    def _alternating(self, start: int) -> Iterator[tuple[int, Row]]:
        lengths = [part.num_rows for part in self.parts]
        cycles: list[Cycle] = []
        if None in lengths:
            cycles = [Cycle(part) for part in self.parts]
            order = self._order(lambda number: cycles[number].is_used_up)
        else:
            counts = Counts([length or 0 for length in lengths])
            order = counts.counted(self._order(counts.is_used_up))
            for _ in islice(order, start):
                pass
            cycles = [Cycle(part, counts.places[number]) for number, part in enumerate(self.parts)]
            start = 0
        rows = ((number, cycles[number].take()) for number in order)
        return islice(rows, start, None)

    def _order(self, is_used_up: Callable[[int], bool]) -> Iterator[int]:
        return alternate(len(self.parts), self.strategy, self.chances, self.seed, is_used_up)


class Counts:
    """How many rows each dataset has given."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self.given = [0] * len(lengths)

    def add(self, number: int) -> None:
        """Count a row."""
        self.given[number] += 1

    def counted(self, order: Iterator[int]) -> Iterator[int]:
        """Count the rows of an order as it goes by."""
        for number in order:
            self.given[number] += 1
            yield number

    def is_used_up(self, number: int) -> bool:
        """Tell whether each row of a dataset has come."""
        return self.given[number] >= self.lengths[number]

    @property
    def places(self) -> list[int]:
        """Where each dataset stands in its present round."""
        return [given % length for given, length in zip(self.given, self.lengths, strict=True)]


class Cycle:
    """Rows of a dataset over and over; it knows beforehand that a row was the last one of a round."""

    def __init__(self, part: Repeated, start: int = 0) -> None:
        self.is_used_up = False
        self._part = part
        self._rows = part.read(start)
        self._next = self._peek()

    def take(self) -> Row:
        """Return the next row."""
        row = self._next
        self._next = self._peek()
        return row

    def _peek(self) -> Row:
        row = next(self._rows, None)
        if row is None:
            self.is_used_up = True
            self._rows = self._part.read()
            row = next(self._rows, None)
        if row is None:
            raise UserError(f"The dataset {self._part.part.name} holds no rows; an empty dataset cannot be used.")
        return row


def alternate(
    num_parts: int,
    strategy: "MixStrategy",
    chances: Sequence[float] | None,
    seed: int,
    is_used_up: Callable[[int], bool],
) -> Iterator[int]:
    """Yield whose row comes next: what `datasets.interleave_datasets` does, told one by one.

    `is_used_up` is asked after each row whether a part has given all its rows.
    """
    is_over = any if strategy == "interleave_under" else all
    is_once = strategy == "interleave_once"
    numbers = range(num_parts)
    if chances is None:
        while True:
            for number in numbers:
                if not (is_once and is_used_up(number)):
                    yield number
            if is_over([is_used_up(number) for number in numbers]):
                return
    for number in draw_numbers(chances, seed):
        if is_once and is_used_up(number):
            continue
        yield number
        if is_used_up(number) and is_over([is_used_up(other) for other in numbers]):
            return


def draw_numbers(chances: Sequence[float], seed: int) -> Iterator[int]:
    """Draw numbers of datasets for ever, in blocks like those of `datasets`."""
    import numpy as np

    generator = np.random.default_rng(seed)
    while True:
        yield from generator.choice(len(chances), size=1000, p=chances).tolist()
