"""A rollout of GRPO: several answers to each prompt, and how much better each is than the others."""

from dataclasses import dataclass
from typing import Any

from ...ops.advantages import group_advantages
from ..objective import Batch, Models, RolloutPlan
from ..rollouts.answers import LENGTHS
from ..rollouts.making import AnswerMaker, device_of
from .objective import ADVANTAGES, EQUAL, OLD_LOGPS, PART, REFERENCE_LOGPS, REWARDS, WEIGHT, Kind, weight_of


@dataclass(frozen=True)
class GrpoRollout:
    """Holds the plan; nothing goes on from rollout to rollout but the weights."""

    plan: RolloutPlan
    maker: AnswerMaker
    kind: Kind
    group_size: int
    longest: int
    """Most tokens of an answer."""
    scales: bool = True
    """Divides by the spread of a group."""
    needs_reference: bool = False

    def __call__(self, models: Models, rows: list[dict[str, Any]], step: int) -> list[Batch]:
        """Write and judge answers, and make them ready to learn from."""
        device = device_of(models.policy)
        tries = self.maker.make(models, rows, step, self.group_size)
        batches = self.maker.batches(tries, device)
        advantages_S = group_advantages(tries.rewards_S, self.group_size, scale=self.scales)
        groups = tries.rewards_S.view(-1, self.group_size)
        equal_S = (groups == groups[:, :1]).all(dim=1).float().repeat_interleave(self.group_size)
        columns = {ADVANTAGES: advantages_S, REWARDS: tries.rewards_S, EQUAL: equal_S}
        columns |= {f"{PART}{name}": part for name, part in tries.parts.items()}
        start = 0
        for batch in batches:
            end = start + batch[LENGTHS].numel()
            batch |= {name: values[start:end].to(device) for name, values in columns.items()}
            batch[WEIGHT] = weight_of(self.kind, batch, self.longest)
            start = end
        if self.plan.num_steps * self.plan.num_passes > 1:  # else the policy that learns is the one that wrote
            for batch, outputs in zip(batches, self.maker.old_outputs(models, batches), strict=True):
                batch[OLD_LOGPS] = outputs.logps_K
        if self.needs_reference:
            for batch, logps_K in zip(batches, self.maker.reference_logps(models, batches), strict=True):
                batch[REFERENCE_LOGPS] = logps_K
        self.maker.keep_samples(step, tries)
        return batches

    def state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take nothing."""
