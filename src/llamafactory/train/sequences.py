"""Supervised positions, and log-probabilities of whole answers: what dpo, kto, ppo and grpo share.

Shapes: B rows, T tokens, K supervised positions, S sequences (rows of a padded batch, documents of a flat one).
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.batch import documents_of, model_inputs
from ..extras.constants import IGNORE_INDEX
from ..model.readout import Readout
from ..ops.logprobs import LogProbs, linear_log_probs
from .objective import Batch


class SequenceLogProbs(NamedTuple):
    """What a model says about the supervised tokens of S sequences, in float32."""

    sums_S: Tensor
    """Sum of log p over the supervised tokens; carries the gradient."""
    counts_S: Tensor
    """Number of supervised tokens (int64)."""
    logps_K: Tensor
    """log p of each supervised token, in reading order; carries the gradient."""
    documents_K: Tensor
    """The sequence that each supervised token belongs to."""
    logit_means_K: Tensor
    """Mean logit over the vocabulary at each position; detached."""
    entropies_K: Tensor | None
    """Entropy at each position in nats, when asked for; detached."""


def supervised_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return where (in all B x T tokens) a label has to be predicted, and that label: [K] and [K].

    A position predicts the next token of its own row; the first token of a row is never predicted, nor the first one
    of a further document, as its label is IGNORE_INDEX (data/packing.py).
    """
    labels_BT: Tensor = batch["labels"]
    targets = shift_labels(labels_BT).flatten()
    positions_K = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    return positions_K, targets[positions_K]


def shift_labels(labels_BT: Tensor) -> Tensor:
    """Return the targets of each position: the label of the next token, and none for the last one."""
    targets_BT = labels_BT.new_full(labels_BT.shape, IGNORE_INDEX)
    targets_BT[..., :-1] = labels_BT[..., 1:]
    return targets_BT


def sequence_log_probs(
    model: nn.Module, batch: Batch, num_sequences: int, *, with_entropy: bool = False
) -> SequenceLogProbs:
    """Run the model, however it is wrapped, and add up log p(label) by sequence.

    Without gradients (a reference) nothing is kept for a backward pass.
    """
    positions_K, targets_K = supervised_positions(batch)
    documents_K = documents_of(batch).flatten()[positions_K]
    compute = partial(linear_log_probs, targets_K=targets_K, with_entropy=with_entropy)
    found: LogProbs = model(**model_inputs(batch), use_cache=False, readout=Readout(positions_K, compute))
    return SequenceLogProbs(
        sums_S=_add_up(found.logps_K, documents_K, num_sequences),
        counts_S=torch.bincount(documents_K, minlength=num_sequences),
        logps_K=found.logps_K,
        documents_K=documents_K,
        logit_means_K=found.logit_means_K,
        entropies_K=found.entropies_K,
    )


def sum_sequences(values_K: Tensor, found: SequenceLogProbs) -> Tensor:
    """Add up one number per supervised token by sequence: [S]; differentiable."""
    return _add_up(values_K, found.documents_K, found.counts_S.numel())


def _add_up(values_K: Tensor, documents_K: Tensor, num_sequences: int) -> Tensor:
    return values_K.new_zeros(num_sequences).index_add(0, documents_K, values_K)
