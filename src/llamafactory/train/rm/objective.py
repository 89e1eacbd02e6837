"""The loss of a reward model: the better answer of a pair should score higher.

-log sigmoid(r_chosen - r_rejected), the model of Bradley and Terry (1952) as used by Ouyang et al. (2022, eq. 1).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..objective import Batch, LossSum, MetricSum, Models
from .scoring import LAST_POSITIONS, score_sequences


def pairwise_objective(models: Models, batch: Batch) -> LossSum:
    """Sum over the pairs; `accuracy` is the share of pairs that are put in the right order, a tie counting half."""
    chosen_P, rejected_P = score_sequences(models.policy, batch).chunk(2)
    margins_P = chosen_P - rejected_P
    weight = torch.tensor(margins_P.numel(), device=margins_P.device)
    hits = (margins_P > 0).float().sum() + 0.5 * (margins_P == 0).float().sum()
    metrics = {
        "accuracy": MetricSum(hits, weight),
        "margin": MetricSum(margins_P.detach().sum(), weight),
        "chosen_score": MetricSum(chosen_P.detach().sum(), weight),
        "rejected_score": MetricSum(rejected_P.detach().sum(), weight),
    }
    return LossSum(-logsigmoid(margins_P).sum(), weight, metrics)


def count_pairs(batch: Batch) -> Tensor:
    """Count the pairs: half of the sequences."""
    return torch.tensor(batch[LAST_POSITIONS].numel() // 2)
