"""The loss of PPO (Schulman et al. 2017): clipped surrogate of the policy and clipped loss of the values.

Advantages have variance 1 whatever the rewards are; so that `value_coef` and `value_clip` mean the same for rewards of
any size, values are measured in the spread of the returns so far. Shapes: S answers, K answer tokens of all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...extras.errors import UserError
from ...model.model_utils.valuehead import value_head_of
from ...ops.advantages import clipped_surrogate, clipped_value_loss, kl_estimates
from ..objective import Batch, LossSum, MetricSum, Models
from ..rollouts.answers import FINISHED, LENGTHS, TARGETS, token_outputs


OLD_LOGPS, OLD_VALUES = "rollout_old_logps", "rollout_old_values"
ADVANTAGES, RETURNS = "rollout_advantages", "rollout_returns"
VALUE_UNIT = "rollout_value_unit"
"""One number: the spread of the returns."""
SCORES, KL = "rollout_scores", "rollout_kl"
"""[S]: what the reward sources gave, and the divergence of the whole answer from the reference."""


@dataclass(frozen=True)
class PpoObjective:
    """Sums over answer tokens."""

    clip_range: float
    value_clip: float
    value_coef: float
    temperature: float = 1.0

    def __call__(self, models: Models, batch: Batch) -> LossSum:
        head = value_head_of(models.policy)
        if head is None:
            raise UserError("PPO needs a policy with a value head; load it with head='value'.")
        outputs = token_outputs(models.policy, batch, temperature=self.temperature, value_head=head)
        if outputs.values_K is None:
            raise RuntimeError("The value head gave no values.")
        log_ratios_K = outputs.logps_K - batch[OLD_LOGPS]
        policy_K, clipped_K = clipped_surrogate(log_ratios_K, batch[ADVANTAGES], self.clip_range, self.clip_range)
        values_K, olds_K, returns_K = (
            numbers / batch[VALUE_UNIT] for numbers in (outputs.values_K, batch[OLD_VALUES], batch[RETURNS])
        )
        value_K, _ = clipped_value_loss(values_K, olds_K, returns_K, self.value_clip)
        total = policy_K.sum() + self.value_coef * value_K.sum()
        tokens = {
            "policy_loss": policy_K,
            "value_loss": value_K,
            "clip_fraction": clipped_K,
            "entropy": outputs.entropies_K,
            "policy_change": kl_estimates(batch[OLD_LOGPS], outputs.logps_K.detach()),
        }
        weight = torch.tensor(log_ratios_K.numel(), device=total.device)
        metrics = {name: MetricSum(values_K.detach().sum(), weight) for name, values_K in tokens.items()}
        return LossSum(total, weight, metrics | answer_metrics(batch, {"reward": SCORES, "kl": KL}))


def answer_metrics(batch: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, MetricSum]:
    """Return means over the answers of a batch, by what they are called in the log."""
    lengths_S = batch[LENGTHS]
    weight = torch.tensor(lengths_S.numel(), device=lengths_S.device)
    values = {name: batch[source] for name, source in names.items()}
    values |= {"answer_length": lengths_S.float(), "finished": batch[FINISHED]}
    return {name: MetricSum(values_S.sum(), weight) for name, values_S in values.items()}


def count_tokens(batch: Batch) -> Tensor:
    """Count the answer tokens."""
    return torch.tensor(batch[TARGETS].numel())
