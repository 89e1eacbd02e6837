"""Answers and their log-probabilities, for the stages that compare a policy with its reference.

Shapes: S answers of a batch, K tokens of all answers, N pairs or rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.collator import part
from ..ops.preference import length_desensitized_weights
from .collation import row_collator
from .meter import sum_dtype
from .objective import Batch, Models
from .reference import reference_of
from .sequences import sequence_log_probs, sum_sequences
from .stage import Collator, StageContext


NUM_ANSWERS = "num_answers"
"""Name in a batch of the number of its answers: an int, known without asking the device."""
REFERENCE_LOGPS = "reference_logps"
"""Name in a batch of the reference's log-probabilities [S], where they were computed before."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerCollator:
    """Puts answers into one batch: the parts of all rows under the first prefix, then under the second, ..."""

    collate: Collator
    prefixes: tuple[str, ...] = ("",)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Return what `collate` makes of the answers, their number, and the reference's words where rows hold them."""
        answers = [dict(part(row, prefix)) for prefix in self.prefixes for row in rows]
        batch: Batch = {**self.collate(answers), NUM_ANSWERS: len(answers)}
        if reference_column(self.prefixes[0]) in rows[0]:
            numbers = [row[reference_column(prefix)] for prefix in self.prefixes for row in rows]
            batch[REFERENCE_LOGPS] = torch.tensor(numbers, dtype=torch.float32)
        return batch

    @property
    def lays_flat(self) -> bool:
        """Whether answers are laid end to end, so that none is padded."""
        return bool(getattr(self.collate, "lays_flat", False))

    @property
    def pad_to_multiple_of(self) -> int | None:
        """The multiple that a batch is padded to."""
        return getattr(self.collate, "pad_to_multiple_of", None)


def answer_collator(context: StageContext, prefixes: tuple[str, ...]) -> AnswerCollator:
    """Make the collator of a run: answers laid end to end, or padded."""
    return AnswerCollator(row_collator(context), prefixes)


def reference_column(prefix: str) -> str:
    """Name the column that holds the reference's log-probability of the answer under a prefix."""
    return f"{prefix}{REFERENCE_LOGPS}"


class AnswerLogProbs(NamedTuple):
    """What a model says of S answers, in float32."""

    sums_S: Tensor
    """Sums of log p over the tokens of each answer; with `ld_alpha`, weighted. Carry the gradient."""
    plain_S: Tensor
    """The same sums without weights."""
    lengths_S: Tensor
    """Numbers of tokens, at least 1."""
    logits_S: Tensor
    """Sums over the tokens of the mean logit; detached."""


def answer_log_probs(model: nn.Module, batch: Batch, ld_alpha: float | None = None) -> AnswerLogProbs:
    """Return the log-probabilities of the answers of a batch under a model, with gradient where it has one."""
    num_answers = batch[NUM_ANSWERS]
    inputs = {name: value for name, value in batch.items() if name not in (NUM_ANSWERS, REFERENCE_LOGPS)}
    found = sequence_log_probs(model, inputs, num_answers)
    sums_S = found.sums_S
    if ld_alpha is not None and ld_alpha != 1:
        weights_K = length_desensitized_weights(found.documents_K, found.counts_S, ld_alpha)
        sums_S = sum_sequences(found.logps_K * weights_K, found)
    logits_S = sum_sequences(found.logit_means_K, found)
    return AnswerLogProbs(sums_S, found.sums_S, found.counts_S.clamp(min=1), logits_S)


def reference_sums(models: Models, batch: Batch, ld_alpha: float | None = None) -> Tensor:
    """Return the sums [S] of the reference: those that the batch brings, or what it says now.

    To be called before the policy's forward pass (see `reference_of`).
    """
    if REFERENCE_LOGPS in batch:
        return batch[REFERENCE_LOGPS]
    with reference_of(models) as reference:
        return answer_log_probs(reference, batch, ld_alpha).sums_S


def add_over_ranks(sums: Tensor) -> Tensor:
    """Return the sums over all ranks, in the widest float of the device."""
    total = sums.detach().to(sum_dtype(sums.device))
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total
