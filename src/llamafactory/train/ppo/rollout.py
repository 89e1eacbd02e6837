"""A rollout of PPO: answers, scores, values and divergences become advantages and returns.

Shapes: S answers, K answer tokens laid end to end, T places for the tokens of one answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...model.model_utils.valuehead import value_head_of
from ...ops.advantages import generalized_advantages, kl_estimates, sums_by_sequence, whiten
from ..objective import Batch, Models, RolloutPlan
from ..rollouts.answers import FINISHED, LENGTHS, OWNERS
from ..rollouts.making import AnswerMaker, device_of, sum_over_ranks
from .control import KlController, RunningMoments
from .objective import ADVANTAGES, KL, OLD_LOGPS, OLD_VALUES, RETURNS, SCORES


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

    def __call__(self, models: Models, rows: list[dict[str, Any]], step: int) -> list[Batch]:
        """Write and judge answers, and make them ready to learn from."""
        device = device_of(models.policy)
        tries = self.maker.make(models, rows, step)
        batches = self.maker.batches(tries, device)
        old = self.maker.old_outputs(models, batches, value_head=value_head_of(models.policy))
        reference = self.maker.reference_logps(models, batches)
        scores = tries.rewards_S.to(device).split([batch[LENGTHS].numel() for batch in batches])
        for batch, outputs, logps_K, scores_S in zip(batches, old, reference, scores, strict=True):
            divergence_K = kl_estimates(outputs.logps_K, logps_K, "k1")
            batch |= {OLD_LOGPS: outputs.logps_K, OLD_VALUES: outputs.values_K, SCORES: scores_S}
            batch |= {KL: sums_by_sequence(divergence_K, batch[OWNERS], scores_S.numel()), RETURNS: divergence_K}
        judged = self._judge(batches)
        self._value(batches, judged)
        self._learn(batches)
        self.maker.keep_samples(step, tries)
        return batches

    def state(self) -> dict[str, Any]:
        """Return the price of divergence and the moments of the scores."""
        return {"kl_coef": self.controller.coef, "moments": self.moments.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self.controller.coef = state["kl_coef"]
        self.moments = RunningMoments(**state["moments"])

    def _judge(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the scores [S] that count: normalised, and less for an answer without an end."""
        scores_S = torch.cat([batch[SCORES] for batch in batches])
        if self.settings.normalizes_scores:
            sums = torch.stack([torch.ones_like(scores_S), scores_S, scores_S.square()]).double().sum(dim=1)
            self.moments.add(*sum_over_ranks(sums, scores_S.device).tolist())
            scores_S = (scores_S - self.moments.mean) / self.moments.std
        finished_S = torch.cat([batch[FINISHED] for batch in batches])
        scores_S = scores_S - self.settings.missing_eos_penalty * (1 - finished_S)
        return list(scores_S.split([batch[SCORES].numel() for batch in batches]))

    def _value(self, batches: Sequence[Batch], scores: Sequence[Tensor]) -> None:
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
        advantages_ST = generalized_advantages(
            rewards_ST, values_ST, mask_ST, gamma=self.settings.gamma, lam=self.settings.lam
        )
        returns_K = (advantages_ST + values_ST)[mask_ST]
        advantages_K = whiten(advantages_ST, mask_ST, add_up=add_up)[mask_ST]
        sizes = [batch[OLD_LOGPS].numel() for batch in batches]
        for batch, advantages, returns in zip(batches, advantages_K.split(sizes), returns_K.split(sizes), strict=True):
            batch |= {ADVANTAGES: advantages, RETURNS: returns}

    def _learn(self, batches: Sequence[Batch]) -> None:
        """Let the price of divergence follow what was measured."""
        kl_S = torch.cat([batch[KL] for batch in batches])
        total, count = sum_over_ranks(torch.stack([kl_S.sum(), torch.ones_like(kl_S).sum()]), kl_S.device).tolist()
        self.controller.update(total / count, int(count))


def spread(values_K: Tensor, mask_ST: Tensor) -> Tensor:
    """Put numbers that lie end to end in rows, 0 behind the end of each."""
    return values_K.new_zeros(mask_ST.shape).masked_scatter(mask_ST, values_K)
