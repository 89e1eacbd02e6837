"""When a rollout is made, and which batches each optimizer step takes from it.

The Trainer counts batches of its data loader. So the loader of prompts gives, for each rollout, one batch with all its
prompts and then empty ones, as many together as will be trained on in all passes. Steps, epochs, logs, checkpoints and
the skipping on resume are then right without the Trainer knowing of rollouts.

A checkpoint may fall between two steps of one rollout. Its answers came from an earlier policy and cannot be made
again, so they are saved with the checkpoint, one file per rank.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ...extras.errors import UserError
from ..objective import Batch, Models, Rollout, RolloutPlan


ROWS = "rows"
"""The only name in a batch of the loader: the prompts as the dataset holds them."""


class RolloutBatches(Sampler[list[int]]):
    """Row numbers of one rank: the prompts of a rollout, then empty batches.

    An epoch sees each prompt once; its last rollout is filled up with prompts from the beginning of the epoch's order.
    """

    def __init__(
        self, num_rows: int, plan: RolloutPlan, accumulation: int, place: tuple[int, int], seed: int | None
    ) -> None:
        """`place` is (rank, number of ranks); without a seed, prompts come in the order of the dataset."""
        self._num_rows, self._plan, self._seed = num_rows, plan, seed
        self._rank, self._num_ranks = place
        self._num_rollouts = -(-num_rows // (plan.num_prompts * self._num_ranks))
        self._num_batches = plan.num_steps * plan.num_passes * accumulation
        self._epoch = 0

    @property
    def batch_sampler(self) -> "RolloutBatches":
        """Where the Trainer looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self._num_rows))
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed + self._epoch)
            order = torch.randperm(self._num_rows, generator=generator).tolist()
        size = self._plan.num_prompts
        for rollout in range(self._num_rollouts):
            start = (rollout * self._num_ranks + self._rank) * size
            yield [order[index % self._num_rows] for index in range(start, start + size)]
            for _ in range(self._num_batches - 1):
                yield []

    def __len__(self) -> int:
        return self._num_rollouts * self._num_batches


def prompt_loader(dataset: Any, plan: RolloutPlan, args: Any, place: tuple[int, int]) -> DataLoader[Any]:
    """Make the loader of prompts; `args` are the Trainer's."""
    if not hasattr(dataset, "__len__"):
        raise UserError("Stages that learn from their own answers need all prompts at hand; set streaming: false.")
    seed = args.data_seed if args.data_seed is not None else args.seed
    order_seed = None if args.train_sampling_strategy == "sequential" else seed
    batches = RolloutBatches(len(dataset), plan, args.gradient_accumulation_steps, place, order_seed)
    generator = torch.Generator().manual_seed(args.seed)  # else the loader would draw from the global numbers
    return DataLoader(dataset, batch_sampler=batches, collate_fn=keep_rows, generator=generator)


def keep_rows(rows: list[dict[str, Any]]) -> Batch:
    """Leave the prompts as they are; a rollout makes batches of them."""
    return {ROWS: rows}


class Replay:
    """Holds the batches of the rollout under way and hands them out step by step."""

    def __init__(self, rollout: Rollout, accumulation: int, seed: int) -> None:
        self._rollout, self._accumulation, self._seed = rollout, accumulation, seed
        self._batches: list[Batch] = []
        self._num_taken = 0
        self._start = 0

    def take(self, models: Models, entries: list[Batch], step: int) -> list[Batch]:
        """Return the batches of one optimizer step; `entries` are what the loader gave for it."""
        plan = self._rollout.plan
        rows = [row for entry in entries for row in entry[ROWS]]
        if not self._batches:
            self._batches, self._start = self._rollout(models, rows, step), step
            if len(self._batches) != plan.num_steps * self._accumulation:
                raise RuntimeError(f"A rollout of {plan} made {len(self._batches)} batches.")
        elif rows:
            raise RuntimeError(f"Prompts came at step {step}, in the middle of the rollout of step {self._start}.")

        number, place = divmod(self._num_taken, plan.num_steps)
        chosen = self._order(number)[place * self._accumulation : (place + 1) * self._accumulation]
        batches = [self._batches[index] for index in chosen]
        self._num_taken += 1
        if self._num_taken == plan.num_steps * plan.num_passes:
            self._batches, self._num_taken = [], 0
        return batches

    def save(self, path: Path) -> None:
        """Write what a resumed run needs."""
        state = {
            "rollout": self._rollout.state(),
            "batches": to_cpu(self._batches),
            "num_taken": self._num_taken,
            "start": self._start,
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        if not path.is_file():
            raise UserError(
                f"The checkpoint {path.parent} lacks {path.name}, the answers that this process was learning from: "
                "resume with as many processes as before."
            )
        state = torch.load(path, "cpu", weights_only=True)
        self._rollout.restore(state["rollout"])
        self._batches, self._num_taken, self._start = state["batches"], state["num_taken"], state["start"]

    def _order(self, number: int) -> list[int]:
        """The order of the batches in one pass; with one step a pass it changes nothing."""
        count = len(self._batches)
        if self._rollout.plan.num_steps == 1:
            return list(range(count))
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self._start) * 1_009 + number)
        return torch.randperm(count, generator=generator).tolist()


def to_cpu(value: Any) -> Any:
    """Copy the tensors in lists and dicts to main memory."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: to_cpu(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [to_cpu(item) for item in cast("list[Any]", value)]
    return value
