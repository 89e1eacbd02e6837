"""The loader of a stream: one per rank, each with its own batches, so that ranks need not wait for one another."""

from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Sampler

from ..data.stream_readers import Delivery, StreamReader, Stride, Ticket
from ..data.streaming import StreamRows
from ..extras.env import set_defaults
from ..extras.errors import UserError
from .batches import FILLER, rank_loader
from .objective import Batch
from .stage import Collator


COUNTS = "stream_counts"
"""The key under which a batch carries what became of its rows."""


class StreamBatches(Sampler[list[Ticket]]):
    """The numbers of one rank's batches."""

    def __init__(self, num_batches: int, rank: int, num_ranks: int) -> None:
        self._num_batches = num_batches
        self._rank = rank
        self._num_ranks = num_ranks
        self._epoch = 0
        self._first_epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; called by the Trainer before each one."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[Ticket]]:
        self._first_epoch = self._epoch if self._first_epoch is None else self._first_epoch
        is_counted = self._epoch == self._first_epoch
        for number in range(self._num_batches):
            yield [Ticket(self._epoch, number * self._num_ranks + self._rank, is_counted)]

    def __len__(self) -> int:
        return self._num_batches


@dataclass(frozen=True)
class StreamCollator:
    """Makes a batch of what a reader delivers."""

    collate: Collator

    def __call__(self, delivery: Delivery) -> Batch:
        batch = self.collate(delivery.rows)
        if delivery.is_filler:
            batch[FILLER] = True
        if delivery.counts:
            batch[COUNTS] = Counted(delivery.counts)
        return batch


@dataclass(frozen=True)
class Counted:
    """Keeps what is no tensor whole on its way to the device."""

    counts: list[Any]


class StreamError(UserError):
    """A user's error in a loading process, whose text arrives with the process's traceback around it."""

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


class GuardedReader(StreamReader):
    """A reader whose errors survive the way out of a loading process."""

    def __getitems__(self, tickets: Any) -> Delivery:
        try:
            return super().__getitems__(tickets)
        except UserError as error:
            raise StreamError(str(error)) from None


def stream_loader(rows: StreamRows, collate: Collator, args: Any, place: tuple[int, int], batch_size: int) -> Any:
    """Make the loader of one rank; `place` is its number and how many there are."""
    rank, num_ranks = place
    check_settings(args)
    stride = Stride(batch_size, num_ranks, max(args.dataloader_num_workers, 1), args.dataloader_drop_last)
    num_batches = args.max_steps * args.gradient_accumulation_steps
    if rows.num_rows is not None:
        num_batches = stride.num_batches(rows.num_rows)
    elif args.max_steps < 1:
        raise UserError(
            "streaming: true with packing needs max_steps, because nobody knows how many rows the examples fill "
            "before they are encoded; set it, or packing: false."
        )
    seed = args.data_seed if args.data_seed is not None else args.seed
    shuffle = rows.shuffle(seed, args.train_sampling_strategy != "sequential")
    if args.dataloader_num_workers:
        set_defaults({"TOKENIZERS_PARALLELISM": "false"})  # the processes share the cores already
    reader, batches = GuardedReader(rows, stride, shuffle, num_batches), StreamBatches(num_batches, rank, num_ranks)
    return rank_loader(reader, batches, StreamCollator(collate), args)


def check_settings(args: Any) -> None:
    """Refuse ways of sharing rows out that a stream does not have."""
    for name in ("dispatch_batches", "split_batches"):
        if getattr(args.accelerator_config, name):
            raise UserError(
                f"accelerator_config: {name} cannot go with streaming: true, where every rank reads its own rows; "
                "remove it."
            )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise UserError(
            f"train_sampling_strategy: {args.train_sampling_strategy} needs the lengths of all rows, which "
            "streaming: true does not know; use random or sequential."
        )


def take_counts(batches: Iterable[MutableMapping[str, Any]], rows: Any) -> None:
    """Take what became of rows off the batches, into the report of the stream."""
    for batch in batches:
        counted = batch.pop(COUNTS, None)
        if counted is not None and isinstance(rows, StreamRows):
            rows.count(counted.counts)
