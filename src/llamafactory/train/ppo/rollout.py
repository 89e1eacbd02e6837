"""A rollout of PPO: answers, scores, values and divergences become advantages and returns.

Shapes: S answers, K answer tokens laid end to end, T places for the tokens of one answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...model.model_utils.valuehead import ValueHead, value_head_of
from ...ops.advantages import generalized_advantages, kl_estimates, sums_by_sequence, whiten
from ..meter import sum_dtype
from ..objective import Batch, Models, RolloutPlan
from ..rollouts.answers import FINISHED, LENGTHS, OWNERS
from ..rollouts.making import AnswerMaker, device_of, sum_over_ranks
from .control import KlController, RunningMoments
from .objective import ADVANTAGES, KL, OLD_LOGPS, OLD_VALUES, RETURNS, SCORES, VALUE_UNIT


@dataclass(frozen=True)
class PpoSettings:
    """How rewards become advantages."""

    gamma: float
    lam: float
    missing_eos_penalty: float = 0.0
    normalizes_scores: bool = False
    whitens_rewards: bool = False


@dataclass
class PpoRollout:
    """Holds the plan, and the numbers that go on from rollout to rollout."""

    plan: RolloutPlan
    maker: AnswerMaker
    settings: PpoSettings
    controller: KlController
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Of the scores."""
    returns: RunningMoments = field(default_factory=RunningMoments)
    """Of the returns, which values are measured by."""

    def __call__(self, models: Models, rows: list[dict[str, Any]], step: int) -> list[Batch]:
        """Write and judge answers, and make them ready to learn from."""
        device, head = device_of(models.policy), value_head_of(models.policy)
        tries = self.maker.make(models, rows, step)
        batches = self.maker.batches(tries, device)
        old = self.maker.old_outputs(models, batches, value_head=head)
        reference = self.maker.reference_logps(models, batches)
        scores = tries.rewards_S.to(device).split([batch[LENGTHS].numel() for batch in batches])
        for batch, outputs, logps_K, scores_S in zip(batches, old, reference, scores, strict=True):
            divergence_K = kl_estimates(outputs.logps_K, logps_K, "k1")
            batch |= {OLD_LOGPS: outputs.logps_K, OLD_VALUES: outputs.values_K, SCORES: scores_S}
            batch |= {KL: sums_by_sequence(divergence_K, batch[OWNERS], scores_S.numel()), RETURNS: divergence_K}
        self._value(batches, self._judge(batches), head)
        self._learn(batches)
        self.maker.keep_samples(step, tries)
        return batches

    def state(self) -> dict[str, Any]:
        """Return the price of divergence and the moments of scores and returns."""
        return {
            "kl_coef": self.controller.coef,
            "moments": self.moments.state(),
            "returns": self.returns.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self.controller.coef = state["kl_coef"]
        self.moments = RunningMoments(**state["moments"])
        self.returns = RunningMoments(**state["returns"])

    def _judge(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the scores [S] that count: normalised, and less for an answer without an end."""
        scores_S = torch.cat([batch[SCORES] for batch in batches])
        if self.settings.normalizes_scores:
            self.moments.add(*count_and_sums(scores_S))
            scores_S = (scores_S - self.moments.mean) / self.moments.std
        finished_S = torch.cat([batch[FINISHED] for batch in batches])
        scores_S = scores_S - self.settings.missing_eos_penalty * (1 - finished_S)
        return list(scores_S.split([batch[SCORES].numel() for batch in batches]))

    def _value(self, batches: Sequence[Batch], scores: Sequence[Tensor], head: ValueHead | None) -> None:
        """Fill in advantages and returns; RETURNS holds the divergence of each token until then."""
        lengths_S = torch.cat([batch[LENGTHS] for batch in batches])
        mask_ST = torch.arange(int(lengths_S.max()), device=lengths_S.device) < lengths_S.unsqueeze(1)
        values_ST = spread(torch.cat([batch[OLD_VALUES] for batch in batches]), mask_ST)
        rewards_ST = spread(-self.controller.coef * torch.cat([batch[RETURNS] for batch in batches]), mask_ST)
        # the score belongs to the last real token of an answer: its end, where it has one, and never the padding
        rewards_ST.scatter_add_(1, (lengths_S - 1).unsqueeze(1), torch.cat(list(scores)).unsqueeze(1))
        add_up = partial(sum_over_ranks, device=mask_ST.device)
        if self.settings.whitens_rewards:
            rewards_ST = whiten(rewards_ST, mask_ST, shift_mean=False, add_up=add_up)
        if head is not None and head.is_fresh:
            values_ST = values_ST + self._start(head, rewards_ST, mask_ST)
        advantages_ST = generalized_advantages(
            rewards_ST, values_ST, mask_ST, gamma=self.settings.gamma, lam=self.settings.lam
        )
        returns_K = (advantages_ST + values_ST)[mask_ST]
        self.returns.add(*count_and_sums(returns_K))
        advantages_K = whiten(advantages_ST, mask_ST, add_up=add_up)[mask_ST]
        unit = returns_K.new_tensor(self.returns.std)
        columns = {OLD_VALUES: values_ST[mask_ST], RETURNS: returns_K, ADVANTAGES: advantages_K}
        start = 0
        for batch in batches:
            end = start + batch[OLD_LOGPS].numel()
            batch |= {VALUE_UNIT: unit, **{name: values_K[start:end] for name, values_K in columns.items()}}
            start = end

    def _start(self, head: ValueHead, rewards_ST: Tensor, mask_ST: Tensor) -> float:
        """Let a head that knows nothing yet give the mean return to every token, and return that number.

        From 0 it would take it many rollouts to get there, in which its errors drown what the policy should learn.
        """
        plain_ST = generalized_advantages(
            rewards_ST, torch.zeros_like(rewards_ST), mask_ST, gamma=self.settings.gamma, lam=1.0
        )
        count, total, _ = count_and_sums(plain_ST[mask_ST])
        with torch.no_grad():
            head.summary.bias.fill_(total / count)
        return head.summary.bias.item()

    def _learn(self, batches: Sequence[Batch]) -> None:
        """Let the price of divergence follow what was measured."""
        kl_S = torch.cat([batch[KL] for batch in batches])
        total, count = sum_over_ranks(torch.stack([kl_S.sum(), torch.ones_like(kl_S).sum()]), kl_S.device).tolist()
        self.controller.update(total / count, int(count))


def count_and_sums(numbers: Tensor) -> tuple[float, float, float]:
    """Return count, sum and sum of squares over all ranks."""
    exact = numbers.to(sum_dtype(numbers.device))
    sums = torch.stack([torch.ones_like(exact), exact, exact.square()]).flatten(1).sum(dim=1)
    count, total, squares = sum_over_ranks(sums, numbers.device).tolist()
    return count, total, squares


def spread(values_K: Tensor, mask_ST: Tensor) -> Tensor:
    """Put numbers that lie end to end in rows, 0 behind the end of each."""
    return values_K.new_zeros(mask_ST.shape).masked_scatter(mask_ST, values_K)
