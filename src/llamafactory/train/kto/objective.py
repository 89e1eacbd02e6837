"""The loss of KTO: good answers should gain on the reference, bad ones lose. Shapes: N rows.

How much an answer gains is held against the drift of the whole policy: the mean log-ratio of answers that do not
belong to their prompts (data/mismatch.py), at least 0 and without gradient. It is one number for an optimizer step,
taken over all its rows on all ranks, and one for an evaluation: so the loss does not depend on how rows were cut into
batches, and a batch of one row has as good an estimate as a large one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ops.preference import KtoSettings, kto_loss
from ..answers import (
    NUM_ANSWERS,
    AnswerCollator,
    AnswerLogProbs,
    add_over_ranks,
    answer_log_probs,
    reference_sums,
)
from ..objective import Batch, LossSum, MetricSum, Models
from ..reference import measuring
from ..stage import StageContext


TAGS = "kto_tags"
MISMATCHED = "kl_"
"""What the names of the mismatched answers begin with."""
DRIFT = "kto_drift"
"""Name in a batch of the mean log-ratio of the mismatched answers of the whole step, at least 0."""
NUM_MARKS = "kto_num_marks"
"""Name in a batch of the numbers [2] of good and bad rows in the whole step."""


@dataclass(frozen=True)
class MarkedCollator:
    """Rows with their marks, and the mismatched answers beside them."""

    answers: AnswerCollator
    mismatched: AnswerCollator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of the answers, that of the mismatched ones under names with `kl_`, and the marks [N]."""
        batch = self.answers(rows)
        batch.update({f"{MISMATCHED}{name}": value for name, value in self.mismatched(rows).items()})
        return {**batch, TAGS: torch.tensor([bool(row[TAGS]) for row in rows])}

    @property
    def lays_flat(self) -> bool:
        """Whether answers are laid end to end, so that none is padded."""
        return self.answers.lays_flat

    @property
    def pad_to_multiple_of(self) -> int | None:
        """The multiple that a batch is padded to."""
        return self.answers.pad_to_multiple_of


@dataclass(frozen=True)
class MarkedObjective:
    """Sum over the rows of a batch."""

    settings: KtoSettings
    sft_weight: float = 0.0
    """Weight of -log p per token of the good answers."""

    def __call__(self, models: Models, batch: Batch) -> LossSum:
        answers = {name: value for name, value in batch.items() if not name.startswith(("kl_", "kto_"))}
        is_good_N: Tensor = batch[TAGS]
        reference_N = reference_sums(models, answers)
        policy = answer_log_probs(models.policy, answers)
        drift: Tensor = batch[DRIFT]
        found = kto_loss(policy.sums_S, reference_N, is_good_N, drift, self.settings)

        losses_N = found.losses_N
        means_N = policy.sums_S / policy.lengths_S
        if self.sft_weight:
            losses_N = losses_N - self.sft_weight * means_N * is_good_N
        num_rows = torch.tensor(is_good_N.numel(), device=losses_N.device)
        metrics = self._metrics(found.rewards_N, policy, batch)
        if self.sft_weight:
            metrics["sft_loss"] = MetricSum(-(means_N.detach() * is_good_N).sum(), is_good_N.sum())
        return LossSum(losses_N.sum(), num_rows, metrics)

    def _metrics(self, rewards_N: Tensor, policy: AnswerLogProbs, batch: Batch) -> dict[str, MetricSum]:
        """Means over the good and over the bad rows.

        The margin is the difference of two means, taken over the whole step: every batch adds its rows' share.
        """
        is_good_N: Tensor = batch[TAGS]
        marks: Tensor = batch[NUM_MARKS]
        shares = is_good_N.numel() / marks.sum()
        has_both = (marks > 0).all()
        limit = self.settings.beta * batch[DRIFT]
        metrics = {
            "rewards/accuracies": MetricSum(((rewards_N > limit) == is_good_N).float().sum(), _count(is_good_N)),
            "kl": MetricSum(batch[DRIFT] * shares, shares),
        }
        margin = rewards_N.new_zeros(())
        for side, mask_N, sign, number in (("chosen", is_good_N, 1, marks[0]), ("rejected", ~is_good_N, -1, marks[1])):
            metrics[f"rewards/{side}"] = MetricSum((rewards_N * mask_N).sum(), mask_N.sum())
            metrics[f"logps/{side}"] = MetricSum((policy.sums_S.detach() * mask_N).sum(), mask_N.sum())
            metrics[f"logits/{side}"] = MetricSum((policy.logits_S * mask_N).sum(), (policy.lengths_S * mask_N).sum())
            margin = margin + sign * (rewards_N * mask_N).sum() / number.clamp(min=1)
        metrics["rewards/margins"] = MetricSum(margin * has_both, shares * has_both)
        return metrics


@dataclass(frozen=True)
class DriftSurvey:
    """Measures the drift of the policy over all rows of a step, or of an evaluation."""

    def __call__(
        self, models: Models, batches: Iterable[tuple[Batch, bool]], *, is_training: bool
    ) -> Mapping[str, Any]:
        """Return the drift and the numbers of good and bad rows."""
        total: Tensor | None = None
        for batch, is_counted in batches:
            inputs = {
                name.removeprefix(MISMATCHED): value for name, value in batch.items() if name.startswith(MISMATCHED)
            }
            reference_N = reference_sums(models, inputs)
            with measuring(models.policy) as policy:
                ratios_N = answer_log_probs(policy, inputs).sums_S - reference_N
            num_good = batch[TAGS].sum().to(ratios_N)
            num_bad = ratios_N.numel() - num_good
            total = torch.stack([ratios_N.sum(), num_good, num_bad]) * is_counted + (0 if total is None else total)
        if total is None:
            return {}
        drift, num_good, num_bad = add_over_ranks(total)
        drift = (drift / (num_good + num_bad).clamp(min=1)).clamp(min=0)
        return {DRIFT: drift.float(), NUM_MARKS: torch.stack([num_good, num_bad]).float()}


def marked_objective(context: StageContext) -> MarkedObjective:
    """Make the objective of a run."""
    arguments = context.arguments.finetuning
    settings = KtoSettings(
        beta=arguments.pref_beta,
        desirable_weight=arguments.kto_chosen_weight,
        undesirable_weight=arguments.kto_rejected_weight,
    )
    return MarkedObjective(settings, arguments.pref_ftx)


def count_rows(batch: Batch) -> Tensor:
    """Count the rows of a batch."""
    return torch.tensor(batch[NUM_ANSWERS])


def _count(values: Tensor) -> Tensor:
    return torch.tensor(values.numel(), device=values.device)
