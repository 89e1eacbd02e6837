"""The shuffle of a stream: its rows come in windows of buffer_size, each in an order drawn from seed and epoch.

A window is the buffer: filled, then emptied in random order. When it holds all rows the order is that of prepared
rows. A window that follows can be found without going through those before it, so a resumed run starts in the middle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..extras.errors import UserError
from .sources import Row
from .stream_order import Mixture


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

NumberedRow = tuple[int, Row]
"""A row and the number of its dataset."""


class Window(NamedTuple):
    """Rows that are shuffled together."""

    epoch: int
    start: int
    """Place of the first one among all."""
    rows: list[NumberedRow]
    order: "Numbers"
    """Numbers of rows, as they come."""

    @property
    def end(self) -> int:
        """Place behind the last one."""
        return self.start + len(self.rows)


@dataclass(frozen=True)
class Shuffle:
    """How the rows of a window are ordered."""

    size: int
    """Rows of a window; the last one takes a row more rather than leave it alone."""
    seed: int = 0
    is_random: bool = True

    def order(self, epoch: int, number: int, num_rows: int) -> "Numbers":
        """Draw the order of a window; the first one has the order that all rows get when they are prepared."""
        import numpy as np

        if not self.is_random:
            return np.arange(num_rows)
        seed = [self.seed, epoch] if number == 0 else [self.seed, epoch, 2, number]
        return np.random.default_rng(seed).permutation(num_rows)


class Windows(Protocol):
    """Finds the window that holds a place."""

    def at(self, epoch: int, place: int) -> Window | None:
        """Return the window; None behind the last row of an epoch."""
        ...


class EpochWindows:
    """Windows of a stream whose rows have been counted: each place of each epoch has its row."""

    def __init__(self, mixture: Mixture, num_rows: int, shuffle: Shuffle) -> None:
        self._mixture = mixture
        self._num_rows = num_rows
        self._shuffle = shuffle
        self._num_windows = max(-(-(num_rows - 1) // shuffle.size), 1)
        self._reader: Iterator[NumberedRow] = iter(())
        self._place = -1  # of the row that the reader would give next
        self._held: Window | None = None

    def at(self, epoch: int, place: int) -> Window | None:
        """Return the window; rows that are held already are not read again."""
        if place >= self._num_rows:
            return None
        number = min(place // self._shuffle.size, self._num_windows - 1)
        start = number * self._shuffle.size
        held = self._held
        if held is None or held.start != start:
            end = self._num_rows if number == self._num_windows - 1 else start + self._shuffle.size
            rows = self._read(start, end)
            held = None
        else:
            rows = held.rows
        if held is None or held.epoch != epoch:
            held = Window(epoch, start, rows, self._shuffle.order(epoch, number, len(rows)))
        self._held = held
        return held if place < held.end else None

    def _read(self, start: int, end: int) -> list[NumberedRow]:
        if self._place != start:
            self._reader = self._mixture.read(start)
        self._held = None  # two windows are never in memory together
        rows = list(islice(self._reader, end - start))
        self._place = end
        return rows


class EndlessWindows:
    """Windows of a stream of unknown length: when all rows have come they come again, as the next epoch.

    Places count on over all epochs, and can only be reached by going through those before them.
    """

    def __init__(self, mixture: Mixture, shuffle: Shuffle) -> None:
        self._mixture = mixture
        self._shuffle = shuffle
        self._windows = self._all()
        self._held: Window | None = None

    def at(self, epoch: int, place: int) -> Window:
        """Return the window; the epoch is counted here."""
        if self._held is not None and place < self._held.start:
            self._windows, self._held = self._all(), None
        while self._held is None or place >= self._held.end:
            self._held = None
            self._held = next(self._windows)
        return self._held

    def __iter__(self) -> Iterator[Window]:
        return self._all()

    def _all(self) -> Iterator[Window]:
        epoch = start = 0
        while True:
            rows = self._mixture.read()
            number = 0
            for held in gather(rows, self._shuffle.size):
                yield Window(epoch, start, held, self._shuffle.order(epoch, number, len(held)))
                start += len(held)
                number += 1
            if not number:
                raise UserError("The streamed datasets hold no rows; an empty dataset cannot be used.")
            epoch += 1


def gather(rows: Iterator[NumberedRow], size: int) -> Iterator[list[NumberedRow]]:
    """Yield lists of `size` rows; a last row alone joins the list before it."""
    held = list(islice(rows, size))
    while held:
        following = list(islice(rows, 1))
        after = next(rows, None) if following else None
        if following and after is None:
            held += following
            following = []
        yield held
        held = [*following, after, *islice(rows, size - 2)] if after is not None else []
