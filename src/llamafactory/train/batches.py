"""Which rows a rank takes, and in which order.

In evaluation every row is taken once in all: samplers that pad the last batch with rows from the start count those
rows twice, which a mean over the set must not. In training the order depends on seed and epoch alone, so that a
resumed run takes the rows that the stopped one would have taken.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from .stage import Collator


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
