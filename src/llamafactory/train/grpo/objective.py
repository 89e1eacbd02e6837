"""The loss of GRPO and its kin: a clipped surrogate whose advantages compare answers to the same prompt.

The four differ in what counts alike in a whole optimizer step, over all its batches and ranks:

- grpo: answers; each is the mean over its tokens (Shao et al. 2024, DeepSeekMath).
- dapo: tokens, so long answers weigh more (Yu et al. 2025).
- dr_grpo: every token as one part of the longest possible answer, a constant (Liu et al. 2025).
- gspo: answers, and the ratio that is clipped is that of a whole answer, per token of it (Zheng et al. 2025).

Shapes: S answers, K answer tokens of all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...ops.advantages import clipped_surrogate, kl_estimates, length_mean_log_ratios, sums_by_sequence
from ..objective import Batch, LossSum, MetricSum, Models
from ..rollouts.answers import FINISHED, LENGTHS, OWNERS, TokenOutputs, token_outputs


OLD_LOGPS, REFERENCE_LOGPS = "rollout_old_logps", "rollout_reference_logps"
"""[K]; without old ones the answers came from the very policy that learns, and the ratio is 1."""
ADVANTAGES, REWARDS, EQUAL = "rollout_advantages", "rollout_rewards", "rollout_equal"
"""[S]: advantage, reward, and 1.0 where the whole group got the same reward."""
PART = "rollout_reward/"
"""Before the name of a source of reward; [S], nan where it does not apply."""
WEIGHT = "rollout_weight"

Kind = Literal["grpo", "dapo", "dr_grpo", "gspo"]


@dataclass(frozen=True)
class GrpoObjective:
    """Sums over answers or tokens, as `kind` says."""

    kind: Kind = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    temperature: float = 1.0

    def __call__(self, models: Models, batch: Batch) -> LossSum:
        outputs = token_outputs(models.policy, batch, temperature=self.temperature)
        losses, clipped = self._surrogate(outputs, batch)
        kl_K = torch.zeros_like(outputs.logps_K)
        if self.beta > 0:
            kl_K = kl_estimates(outputs.logps_K, batch[REFERENCE_LOGPS], "k3")
        tokens = torch.tensor(outputs.logps_K.numel(), device=losses.device)
        metrics = {
            "clip_fraction": MetricSum(clipped.sum(), torch.tensor(clipped.numel(), device=losses.device)),
            "entropy": MetricSum(outputs.entropies_K.sum(), tokens),
            **({"kl": MetricSum(kl_K.detach().sum(), tokens)} if self.beta > 0 else {}),
            **answer_metrics(batch),
        }
        total = self._sum(losses, batch) + self.beta * self._sum(kl_K, batch)
        return LossSum(total, batch[WEIGHT].to(total.device), metrics)

    def _surrogate(self, outputs: TokenOutputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses, of tokens or (gspo) of answers, and where they are clipped."""
        old_K = batch.get(OLD_LOGPS)
        log_ratios_K = outputs.logps_K - (outputs.logps_K.detach() if old_K is None else old_K)
        if self.kind == "gspo":
            log_ratios_S = length_mean_log_ratios(log_ratios_K, batch[OWNERS], batch[LENGTHS])
            return clipped_surrogate(log_ratios_S, batch[ADVANTAGES], self.clip_low, self.clip_high)
        return clipped_surrogate(log_ratios_K, batch[ADVANTAGES][batch[OWNERS]], self.clip_low, self.clip_high)

    def _sum(self, losses: Tensor, batch: Batch) -> Tensor:
        """Add up losses of tokens or of answers in the measure of the weight."""
        num_answers = batch[LENGTHS].numel()
        is_by_token = losses.numel() == batch[OWNERS].numel()
        if self.kind in ("dapo", "dr_grpo") or (self.kind == "gspo" and not is_by_token):
            return losses.sum()
        return (sums_by_sequence(losses, batch[OWNERS], num_answers) / batch[LENGTHS]).sum()


def weight_of(kind: Kind, batch: Mapping[str, Any], longest: int) -> Tensor:
    """Return what the sum of a batch is divided by: answers, tokens, or the places for tokens."""
    num_answers = batch[LENGTHS].numel()
    if kind == "dapo":
        return torch.tensor(batch[OWNERS].numel())
    return torch.tensor(num_answers * longest if kind == "dr_grpo" else num_answers)


def count_weight(batch: Batch) -> Tensor:
    """Return the weight that was fixed when the batch was made."""
    return batch[WEIGHT]


def answer_metrics(batch: Mapping[str, Any]) -> dict[str, MetricSum]:
    """Return means over answers: rewards, each source of them, lengths, ends, groups that taught nothing."""
    names = {"reward": REWARDS, "answer_length": LENGTHS, "finished": FINISHED, "equal_groups": EQUAL}
    values = {name: batch[source].float() for name, source in names.items()}
    values |= {name.removeprefix("rollout_"): batch[name] for name in batch if name.startswith(PART)}
    return {
        name: MetricSum(values_S.nan_to_num(0.0).sum(), (~values_S.isnan()).sum()) for name, values_S in values.items()
    }
