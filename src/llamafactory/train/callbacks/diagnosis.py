"""Stops a run that cannot learn any more, and says why and on which rows.

A loss that is not a number spoils every weight in the next update; a step without a single supervised token, or a
loss of exactly zero, means that labels or model are not what the user thinks. Each is told before more time is lost.
On a CPU the numbers are looked at before the update. On a GPU looking would make it wait, so a copy is started and
looked at one step later; the last checkpoint from before is sound.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ...extras.errors import UserError
from ..objective import Batch, LossSum
from ..row_search import Document, find_rows, split_documents


MAX_ROWS = 8  # that a message names
MAX_TEXT = 60  # characters of a row's beginning


@dataclass(frozen=True)
class Watched:
    """What one optimizer step left behind to be looked at."""

    numbers: Tensor
    """[micro-batches, 2] on the host: total and weight."""
    batches: list[Batch]
    is_copied: torch.cuda.Event | None = None
    """Has happened once `numbers` hold what they should."""


class Diagnosis(TrainerCallback):
    """Looks at every micro-batch's loss; raises a UserError that names the rows."""

    def __init__(self, tokenizer: Any, *, may_be_zero: bool = False) -> None:
        self._tokenizer = tokenizer
        self._may_be_zero = may_be_zero
        self._losses: list[Tensor] = []
        self._batches: list[Batch] = []
        self._copied: Watched | None = None

    def observe(self, loss: LossSum, batch: Batch) -> None:
        """Take the outcome of one micro-batch; nothing leaves the device."""
        total = loss.total.detach()
        self._losses.append(torch.stack((total, loss.weight.detach().to(total))))
        self._batches.append(batch)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kw: Any
    ) -> None:
        if not self._losses:
            return
        numbers = torch.stack(self._losses)
        batches, self._losses, self._batches = self._batches, [], []
        due = Watched(numbers, batches)
        if numbers.is_cuda:
            due, self._copied = self._copied, start_copy(numbers, batches)
        if due is not None:
            if due.is_copied is not None:
                due.is_copied.synchronize()
            self._judge(due, state.global_step, getattr(train_dataloader, "dataset", None))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._losses, self._batches, self._copied = [], [], None

    def _judge(self, watched: Watched, step: int, dataset: Any) -> None:
        totals, weights = watched.numbers.unbind(dim=1)
        if not bool(totals.isfinite().all()):
            index = int((~totals.isfinite()).nonzero()[0])
            rows = self._rows(watched.batches[index], dataset)
            raise UserError(
                f"The loss became {float(totals[index])} in step {step + 1}, so the run was stopped before "
                f"the weights are lost. Rows of that batch: {rows}. Usual causes: a learning rate that is too high, "
                "fp16 without bf16's range, or broken weights; the last checkpoint is sound."
            )
        if float(weights.sum()) == 0:
            rows = self._rows(watched.batches[0], dataset)
            raise UserError(
                f"No token of step {step + 1} is supervised, so there is nothing to learn from. Rows: {rows}. Look at "
                "them with `llamafactory-cli data preview`; a template that does not fit, mask_history, or a short "
                "cutoff_len can hide every label."
            )
        if float(totals.abs().sum()) == 0 and not self._may_be_zero:
            rows = self._rows(watched.batches[0], dataset)
            raise UserError(
                f"The loss of step {step + 1} is exactly 0, which a model that predicts anything cannot reach. Rows: "
                f"{rows}. The model's weights or its attention are broken in this number format; try bf16: false."
            )

    def _rows(self, batch: Batch, dataset: Any) -> str:
        """Name the rows of a batch: their numbers in the prepared data where they can be found, and how they begin."""
        documents = split_documents(batch)
        numbers = find_rows(documents, dataset)
        named: dict[str, str] = {}  # a pair is two documents of one row
        for place, document in enumerate(documents):
            name = f"row {numbers[place]}" if place in numbers else "a row"
            named.setdefault(name if place in numbers else f"{name} {place}", f"{name} ({self._beginning(document)})")
        return "; ".join(list(named.values())[:MAX_ROWS])

    def _beginning(self, document: Document) -> str:
        text = " ".join(self._tokenizer.decode(document.ids[:MAX_TEXT]).split())
        return repr(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "...")


def start_copy(numbers: Tensor, batches: list[Batch]) -> Watched:
    """Send numbers to the host without waiting for them."""
    on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return Watched(on_host, batches, event)
