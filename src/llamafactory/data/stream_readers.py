"""Batches of a stream, by their numbers: what a loader's processes ask for, one batch at a time.

Batch b of an epoch is taken by rank b % num_ranks, and its loader deals its batches out to its worker processes in
turn. A reader knows this stride, and encodes the rows of its next batches together with those it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

from ..extras.errors import UserError
from .mismatch import mismatch
from .packing import join_documents, pack_lengths
from .stream_windows import EndlessWindows, EpochWindows, Shuffle, Window, Windows
from .streaming import HELD, Count, Outcome, StreamRows


ENCODED_AHEAD = 256  # rows that are encoded together
KL = "kl_"


class Ticket(NamedTuple):
    """A batch that is asked for."""

    epoch: int
    number: int
    """Counted over all ranks."""
    is_counted: bool = True
    """Its rows go into the report."""


@dataclass(frozen=True)
class Stride:
    """How the batches of all ranks are cut and dealt out."""

    batch_size: int = 1
    num_ranks: int = 1
    num_workers: int = 1
    """Processes that load for one rank."""
    drops_rest: bool = False

    @property
    def num_lanes(self) -> int:
        """Processes that load, over all ranks."""
        return self.num_ranks * self.num_workers

    def num_batches(self, num_rows: int) -> int:
        """Return the batches that each rank takes in an epoch."""
        together = self.batch_size * self.num_ranks
        return num_rows // together if self.drops_rest else -(-num_rows // together)

    def places(self, number: int, num_rows: int | None) -> range:
        """Return which rows of an epoch make a batch; the ranks share what is left for the last one, as evenly."""
        start = number * self.batch_size
        whole = start + self.batch_size
        if num_rows is None:
            return range(start, whole)
        together = self.batch_size * self.num_ranks
        num_even = num_rows // together * together
        if start < num_even:
            return range(start, whole)
        size, more = divmod(num_rows - num_even, self.num_ranks)
        rank = number - num_even // self.batch_size
        first = num_even + rank * size + min(rank, more)
        return range(first, first + size + (rank < more)) if rank < self.num_ranks else range(0)


class Delivery(NamedTuple):
    """The rows of a batch."""

    rows: list[dict[str, Any]]
    is_filler: bool
    """No row of the batch could be used, or there was none: these are others, which must count for nothing."""
    counts: list[Count]


class StreamReader:
    """Reads the batches that one loading process is asked for."""

    def __init__(self, stream: StreamRows, stride: Stride, shuffle: Shuffle, num_batches: int) -> None:
        self._stream = stream
        self._stride = stride
        self._shuffle = shuffle
        self._num_batches = num_batches
        self._batches: PlaceReader | LaneReader | None = None
        self._spare: list[dict[str, Any]] = []

    def __len__(self) -> int:
        num_rows = self._stream.num_rows
        return self._num_batches * self._stride.batch_size * self._stride.num_ranks if num_rows is None else num_rows

    def __getitems__(self, tickets: Sequence[Ticket]) -> Delivery:
        """Return the rows of the one batch that is asked for."""
        (ticket,) = tickets
        if self._batches is None:  # made in the process that reads
            kind = LaneReader if self._stream.makes_rows else PlaceReader
            self._batches = kind(self._stream, self._stride, self._shuffle)
        rows, outcomes = self._batches.batch(ticket)
        is_filler = not rows
        rows = rows or self._spare or [self._batches.any_row()]
        self._spare = rows[:1]
        return Delivery(rows, is_filler, [count_of(outcome) for outcome in outcomes if outcome.reason != HELD])


def count_of(outcome: Outcome) -> Count:
    """Take what the report needs."""
    part, _, num_supervised, is_truncated, reason, where = outcome
    return Count(part, outcome.num_tokens, num_supervised, is_truncated, reason, where)


class PlaceReader:
    """Batches of rows, each at its place: a row that cannot be used leaves its batch smaller."""

    def __init__(self, stream: StreamRows, stride: Stride, shuffle: Shuffle) -> None:
        self._stream = stream
        self._stride = stride
        self._num_rows = stream.num_rows
        self._windows: Windows
        if self._num_rows is None:
            self._windows = EndlessWindows(stream.mixture, shuffle)
        else:
            self._windows = EpochWindows(stream.mixture, self._num_rows, shuffle)
        self._window: Window | None = None
        self._encoded: dict[tuple[int, int], Outcome] = {}

    def batch(self, ticket: Ticket) -> tuple[list[dict[str, Any]], list[Outcome]]:
        """Return the rows of a batch, and what became of those that count in the report: of one epoch only."""
        outcomes: list[Outcome] = []
        for place in self._stride.places(ticket.number, self._num_rows):
            key = (ticket.epoch, place)
            if key not in self._encoded:
                self._encode_from(ticket, place)
            if key in self._encoded:
                outcomes.append(self._encoded.pop(key))
        rows = [outcome.row for outcome in outcomes if outcome.row is not None]
        is_first_pass = self._num_rows is not None or (self._window is not None and self._window.epoch == 0)
        return rows, outcomes if ticket.is_counted and is_first_pass else []

    def any_row(self) -> dict[str, Any]:
        """Return some row of the epoch."""
        window = first = self._window or self._windows.at(0, 0)
        reasons: dict[str, str] = {}
        while window is not None and first is not None and window.epoch == first.epoch:
            for start in range(0, len(window.rows), ENCODED_AHEAD):
                numbers = range(start, min(start + ENCODED_AHEAD, len(window.rows)))
                for outcome in self._encode(window, list(numbers)):
                    if outcome.row is not None:
                        return outcome.row
                    reasons.setdefault(outcome.reason, outcome.where)
            window = self._windows.at(window.epoch, window.end)
        raise nothing_usable(reasons)

    def _encode_from(self, ticket: Ticket, place: int) -> None:
        """Encode a row together with those of this process's next batches, as far as they are in the same window."""
        window = self._windows.at(ticket.epoch, place)
        if window is None:
            return
        if self._window is not None and self._window.epoch != window.epoch:
            self._encoded = {key: outcome for key, outcome in self._encoded.items() if key[0] == ticket.epoch}
        self._window = window
        places: list[int] = []
        for number in count(ticket.number, self._stride.num_lanes):
            following = [at for at in self._stride.places(number, self._num_rows) if place <= at < window.end]
            places += following
            if len(places) >= ENCODED_AHEAD or not following:
                break
        outcomes = self._encode(window, [int(window.order[at - window.start]) for at in places])
        self._encoded.update(zip(((ticket.epoch, at) for at in places), outcomes, strict=True))

    def _encode(self, window: Window, numbers: list[int]) -> list[Outcome]:
        if self._stream.arrangement == "mismatched":
            return encode_mismatched(self._stream, window, numbers)
        return self._stream.encoder.encode([window.rows[number] for number in numbers])


def encode_mismatched(stream: StreamRows, window: Window, numbers: list[int]) -> list[Outcome]:
    """Encode rows with the answer of the row that follows in the window; the first one follows the last."""
    encoded: dict[int, Outcome] = {}

    def encode(wanted: Sequence[int]) -> None:
        new = [number for number in dict.fromkeys(wanted) if number not in encoded]
        encoded.update(zip(new, stream.encoder.encode([window.rows[number] for number in new]), strict=True))

    encode(numbers)
    partners: dict[int, int] = {number: number for number in numbers if encoded[number].row is not None}
    searching = list(partners)
    for _ in range(len(window.rows) - 1):
        for number in searching:
            partners[number] = (partners[number] + 1) % len(window.rows)
        encode([partners[number] for number in searching])
        searching = [number for number in searching if encoded[partners[number]].row is None]
        if not searching:
            break
    outcomes: list[Outcome] = []
    for number in numbers:
        outcome = encoded[number]
        if outcome.row is None:
            outcomes.append(outcome)
        elif number in searching:
            outcomes.append(outcome._replace(row=None, reason="no other answer in the buffer to compare with"))
        else:
            other = encoded[partners[number]].row or {}
            ids, labels = mismatch(outcome.row, other, stream.cutoff_len)
            outcomes.append(outcome._replace(row={**outcome.row, f"{KL}input_ids": ids, f"{KL}labels": labels}))
    return outcomes


class LaneReader:
    """Batches of packed rows or of blocks of text.

    How many rows they make is not known beforehand, so every loading process has rows of its own: it takes every
    num_lanes-th row of the stream, and fills its batches from these. It goes round and round, and nobody waits.
    """

    def __init__(self, stream: StreamRows, stride: Stride, shuffle: Shuffle) -> None:
        self._stream = stream
        self._stride = stride
        self._shuffle = shuffle
        self._lane = -1
        self._place = 0
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._outcomes: list[Outcome] = []

    def batch(self, ticket: Ticket) -> tuple[list[dict[str, Any]], list[Outcome]]:
        """Return the next rows of the lane; what a resumed run has had is made again, and passed over."""
        turn, lane = divmod(ticket.number, self._stride.num_lanes)
        start = turn * self._stride.batch_size
        if lane != self._lane or start < self._place:
            self._lane, self._place, self._rows = lane, 0, self._arranged(lane)
        for _ in islice(self._rows, start - self._place):
            self._outcomes.clear()
        rows = list(islice(self._rows, self._stride.batch_size))
        self._place = start + len(rows)
        outcomes, self._outcomes = self._outcomes, []
        return rows, outcomes

    def any_row(self) -> dict[str, Any]:
        """A lane never ends, so it has always rows."""
        raise AssertionError("a lane gave no row")

    def _arranged(self, lane: int) -> Iterator[dict[str, Any]]:
        return self._packed(lane) if self._stream.arrangement == "packed" else self._blocks(lane)

    def _kept(self, lane: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield (epoch, the lane's usable rows of one window)."""
        stride = self._stride.num_lanes
        has_kept = False
        reasons: dict[str, str] = {}
        for window in EndlessWindows(self._stream.mixture, self._shuffle):
            if window.epoch > stride and not has_kept:  # even with fewer rows than lanes each has had one
                raise nothing_usable(reasons)
            own = window.order[(lane - window.start) % stride :: stride].tolist()
            outcomes: list[Outcome] = []
            for start in range(0, len(own), ENCODED_AHEAD):
                numbers = own[start : start + ENCODED_AHEAD]
                outcomes += self._stream.encoder.encode([window.rows[number] for number in numbers])
            self._outcomes += outcomes if window.epoch == 0 else []
            rows = [outcome.row for outcome in outcomes if outcome.row is not None]
            has_kept = has_kept or bool(rows)
            reasons |= {outcome.reason: outcome.where for outcome in outcomes if outcome.reason}
            yield window.epoch, rows

    def _packed(self, lane: int) -> Iterator[dict[str, Any]]:
        for number, (_, rows) in enumerate(self._kept(lane)):
            lengths = [len(row["input_ids"]) for row in rows]
            bins = pack_lengths(lengths, self._stream.cutoff_len, self._shuffle.seed + number)
            for documents in sorted(sorted(documents) for documents in bins):
                yield dict(join_documents([rows[index] for index in documents]))

    def _blocks(self, lane: int) -> Iterator[dict[str, Any]]:
        """Cut the texts of an epoch, end to end; its last block is shorter."""
        rest: list[int] = []
        now = 0
        size = self._stream.cutoff_len
        for epoch, rows in self._kept(lane):
            if epoch != now and rest:
                yield block_of(rest)
                rest = []
            now = epoch
            for row in rows:
                rest += row["input_ids"]
                for start in range(0, len(rest) - size + 1, size):
                    yield block_of(rest[start : start + size])
                rest = rest[len(rest) // size * size :]


def block_of(ids: list[int]) -> dict[str, Any]:
    """Make a row of text."""
    return {"input_ids": ids, "labels": list(ids)}


def nothing_usable(reasons: dict[str, str]) -> UserError:
    """Say that a run has nothing to learn."""
    said = "; ".join(f"{reason} (first: {where})" for reason, where in reasons.items())
    return UserError(f"No streamed row can be used: {said or 'none was read'}.")
