"""Terms that a method of tuning adds to the loss of a stage, whatever the stage is.

A term is one number for the weights as they are, or a mean over the tokens of a batch. It is multiplied by the weight
of the batch that it is added to, and the driver divides by the weight of the whole step. So a step holds it once,
however it was cut into batches and spread over ranks. Evaluations measure the loss without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.adapters.adalora import ranks_of
from ..model.depths import depths_of
from ..model.model_utils.mixture import balance_of
from .objective import Batch, LossSum, MetricSum, Models, Objective
from .stage import StageContext, StageParts


if TYPE_CHECKING:
    from torch import nn

Penalty = Callable[[Batch], Tensor | None]
"""Takes a batch that was just passed through the model; returns the term, or nothing where there is none."""


@dataclass(frozen=True)
class PenalizedObjective:
    """The loss of a stage and what is added to it in training."""

    objective: Objective
    penalties: Mapping[str, Penalty]

    def __call__(self, models: Models, batch: Batch) -> LossSum:
        """Add every term once for each unit of the batch."""
        loss = self.objective(models, batch)
        if not (torch.is_grad_enabled() and models.policy.training):
            return loss
        total, metrics = loss.total, dict(loss.metrics)
        for name, penalty in self.penalties.items():
            term = penalty(batch)
            if term is not None:
                share = term.to(total) * loss.weight
                total = total + share
                metrics[name] = MetricSum(share.detach(), loss.weight)
        return replace(loss, total=total, metrics=metrics)


def with_penalties(parts: StageParts, context: StageContext) -> StageParts:
    """Add what the method of tuning and the kind of model ask for."""
    if not context.arguments.training.do_train:
        return parts
    penalties = find_penalties(context.model, context.arguments.model.moe_aux_loss_coef)
    return replace(parts, objective=PenalizedObjective(parts.objective, penalties)) if penalties else parts


def find_penalties(model: "nn.Module", balance: float | None) -> dict[str, Penalty]:
    """Return the terms by the names under which they are logged."""
    found: dict[str, Penalty] = {}
    ranks = ranks_of(model)
    if ranks is not None and ranks.config.orth_reg_weight > 0:
        found["orth_loss"] = lambda batch: ranks.penalty()
    balancing = balance_of(model, balance)
    if balancing is not None:
        found["aux_loss"] = balancing.take
    depths = depths_of(model)
    if depths is not None:
        found["depth_loss"] = depths.take
    return found
