"""Cross entropy of the supervised tokens.

Shapes: B rows, T tokens, S positions that carry loss in some row, V vocabulary.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...data.batch import model_inputs
from ...extras.constants import IGNORE_INDEX
from ...ops.cross_entropy import cross_entropy, shift_labels
from ..objective import Batch, LossSum, MetricSum, Models
from ..stage import StageContext
from .metric import token_accuracy


@dataclass(frozen=True)
class SupervisedObjective:
    """Sum of -log p(next token) over the labels that are not IGNORE_INDEX.

    The model gets no labels: its own loss would be a mean, and the sum is made here. Where the model can, logits are
    made only for columns of the batch in which some row has a label.
    """

    can_select: bool
    """The model takes `logits_to_keep`."""
    constants: dict[str, Any]
    """Arguments of every forward pass."""
    label_smoothing: float = 0.0
    """Applied in training only."""
    with_accuracy: bool = False
    """Also counts the tokens predicted right, in evaluation only."""

    def __call__(self, models: Models, batch: Batch) -> LossSum:
        is_training = models.policy.training
        inputs = model_inputs(batch)
        targets_BS = shift_labels(batch["labels"])
        if self.can_select:
            columns_S = (targets_BS != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
            inputs["logits_to_keep"], targets_BS = columns_S, targets_BS[:, columns_S]

        logits_BSV: Tensor = models.policy(**inputs, **self.constants).logits
        smoothing = self.label_smoothing if is_training else 0.0
        total = cross_entropy(logits_BSV, targets_BS, label_smoothing=smoothing)
        metrics: dict[str, MetricSum] = {}
        if self.with_accuracy and not is_training:
            metrics["accuracy"] = token_accuracy(logits_BSV, targets_BS)
        return LossSum(total, (targets_BS != IGNORE_INDEX).sum(), metrics)


def supervised_objective(context: StageContext) -> SupervisedObjective:
    """Make the objective for the model of a run."""
    arguments = context.arguments
    return objective_for(
        context.model,
        label_smoothing=arguments.training.label_smoothing_factor,
        with_accuracy=arguments.finetuning.compute_accuracy,
    )


def objective_for(
    model: nn.Module, *, label_smoothing: float = 0.0, with_accuracy: bool = False
) -> SupervisedObjective:
    """Make the objective for a model, using what its forward pass takes."""
    base: Any = model
    accepted = inspect.signature((base.get_base_model() if hasattr(base, "get_base_model") else base).forward)
    return SupervisedObjective(
        can_select="logits_to_keep" in accepted.parameters,
        constants={"use_cache": False} if "use_cache" in accepted.parameters else {},
        label_smoothing=label_smoothing,
        with_accuracy=with_accuracy,
    )


def count_supervised(batch: Batch) -> Tensor:
    """Count the labels that are predicted: the first token of a row never is."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
