"""Which rows a rank takes, and in which order.

Every row is taken once, in evaluation and in an epoch of training: samplers that pad the last batch with rows from the
start would count those rows twice. In training the order depends on seed and epoch alone (batch_plan.py), so that a
resumed run takes the rows that the stopped one would have taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import seed_worker

from ..data.batch_plan import BatchPlan, BatchSize, batch_size_of
from ..data.lengths import sequence_lengths, without_lengths
from ..extras.logging import get_logger, notice_once
from ..hparams import DataArguments, TrainingArguments
from .objective import Batch
from .stage import Collator


logger = get_logger(__name__)

FILLER = "is_filler"
"""The key that marks a batch which must count for nothing."""


class RankBatches(Sampler[list[int]]):
    """Row numbers of one rank: rank, rank + num_ranks, ... in batches.

    A rank that runs out of rows gets fillers (row 0), because sharded models need every rank in every forward pass;
    only the first `num_real` batches count.
    """

    def __init__(self, num_rows: int, batch_size: int, rank: int, num_ranks: int) -> None:
        self._rows = range(rank, num_rows, num_ranks)
        self._batch_size = batch_size
        self.num_real = -(-len(self._rows) // batch_size)
        self._num_batches = -(-len(range(0, num_rows, num_ranks)) // batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self._rows), self._batch_size):
            yield list(self._rows[start : start + self._batch_size])
        for _ in range(self._num_batches - self.num_real):
            yield [0]

    def __len__(self) -> int:
        return self._num_batches


class PlannedBatches(Sampler[list[int]]):
    """The batches of one rank; an empty one is a filler."""

    def __init__(self, plan: BatchPlan, rank: int) -> None:
        self._plan = plan
        self._rank = rank
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; called by the Trainer before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._plan.epoch(self._epoch)[self._rank :: self._plan.num_ranks]:
            yield batch.tolist()

    def __len__(self) -> int:
        return self._plan.num_batches


@dataclass(frozen=True)
class FillingCollator:
    """Makes a batch of one row, marked as a filler, where a rank has none: models may need every rank in each pass."""

    collate: Collator
    rows: Any
    number: int
    """The row that fillers are made of."""

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of the rows, or a filler when there are none."""
        return self.collate(rows) if rows else {**self.collate([self.rows[self.number]]), FILLER: True}


def take_filler(batch: Batch) -> bool:
    """Take the mark off a batch, and tell whether it was there."""
    return bool(batch.pop(FILLER, False))


def size_of(collate: Collator, data: DataArguments, training: TrainingArguments) -> BatchSize:
    """Return how large training batches are; a collator that lays rows end to end says so by `lays_flat`."""
    return batch_size_of(
        data,
        training,
        pads=not getattr(collate, "lays_flat", False),
        multiple=getattr(collate, "pad_to_multiple_of", None) or 1,
    )


def make_plan(rows: Any, size: BatchSize, args: Any, num_ranks: int) -> BatchPlan:
    """Plan the epochs of a run."""
    seed = args.data_seed if args.data_seed is not None else args.seed
    needs_lengths = size.max_tokens is not None or args.train_sampling_strategy == "group_by_length"
    lengths = sequence_lengths(rows) if needs_lengths else without_lengths(len(rows))
    plan = BatchPlan(lengths, size, args.train_sampling_strategy, seed, num_ranks)
    if size.max_tokens is not None and plan.num_oversized:
        notice_once(
            logger,
            f"{plan.num_oversized} of {len(rows)} rows are longer than max_batch_tokens {size.max_tokens}: each of "
            "them is a batch of its own.",
        )
    return plan


def train_loader(rows: Any, plan: BatchPlan, collate: Collator, args: Any, rank: int) -> Any:
    """Make the loader of one rank over prepared rows."""
    return rank_loader(rows, PlannedBatches(plan, rank), FillingCollator(collate, rows, plan.cheapest_row), args)


def rank_loader(source: Any, batches: Any, collate: Any, args: Any) -> Any:
    """Make the loader of one rank, whose `batches` know what the others take.

    It moves batches to the device while the step before is computed.
    """
    loader = DataLoader(
        source,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        in_order=args.dataloader_in_order,
        worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )
    return prepare_data_loader(
        loader,
        args.device,
        num_processes=1,  # the rows have been shared out
        process_index=0,
        put_on_device=True,
        non_blocking=args.accelerator_config.non_blocking,
    )


class EpochOrder(Sampler[int]):
    """A sampler that draws from the global random numbers, made to depend on seed and epoch alone."""

    def __init__(self, sampler: Any, seed: int) -> None:
        self._sampler = sampler
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; called by the Trainer before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


def seed_length_groups(loader: Any, seed: int) -> None:
    """Put the order of `group_by_length` into a loader that the Trainer made."""
    outer = getattr(loader, "batch_sampler", None)
    batches: Any = getattr(outer, "batch_sampler", outer)
    if isinstance(getattr(batches, "sampler", None), LengthGroupedSampler):
        batches.sampler = EpochOrder(batches.sampler, seed)


def eval_loader(dataset: Any, batches: RankBatches, collate: Collator, args: Any) -> DataLoader[Any]:
    """Make the loader; a generator of its own keeps evaluation from moving the random numbers of training."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        generator=torch.Generator().manual_seed(args.seed),
    )
