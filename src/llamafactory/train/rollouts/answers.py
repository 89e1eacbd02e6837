"""Answers as batches to learn from, and what the policy makes of their tokens.

Shapes: S answers, K answer tokens of all of them laid end to end, D hidden. Which tokens belong to which answer
follows from lengths; a batch carries it under names that begin with `rollout_`, which the model does not get.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...data.batch import model_inputs
from ...extras.constants import IGNORE_INDEX
from ...model.model_utils.valuehead import ValueHead
from ...model.readout import Readout
from ...ops.head import OutputHead
from ...ops.logprobs import linear_log_probs
from ..objective import Batch
from ..row_places import row_starts
from ..stage import Collator
from .generation import Answer


PREFIX = "rollout_"
POSITIONS, TARGETS, OWNERS = "rollout_positions", "rollout_targets", "rollout_owners"
"""[K]: the position that predicts a token, the token, and the number of its answer in the batch."""
LENGTHS, FINISHED = "rollout_lengths", "rollout_finished"
"""[S]: tokens of each answer, and 1.0 where it ended by itself."""


class TokenOutputs(NamedTuple):
    """One number per answer token, in float32."""

    logps_K: Tensor
    entropies_K: Tensor
    """Detached."""
    values_K: Tensor | None
    """Of a policy with a value head."""


def answer_batch(answers: Sequence[Answer], collate: Collator) -> Batch:
    """Lay prompts and answers into one batch; the tokens of the answers come in the order of the answers."""
    rows = [
        {
            "input_ids": [*answer.prompt_ids, *answer.ids],
            "attention_mask": [1] * (len(answer.prompt_ids) + len(answer.ids)),
            "labels": [IGNORE_INDEX] * len(answer.prompt_ids) + answer.ids,
        }
        for answer in answers
    ]
    batch = dict(collate(rows))
    starts = row_starts(batch, [len(row["input_ids"]) for row in rows]).tolist()
    first = [start + len(answer.prompt_ids) - 1 for start, answer in zip(starts, answers, strict=True)]
    lengths = torch.tensor([len(answer.ids) for answer in answers])
    return {
        **batch,
        POSITIONS: torch.cat(
            [torch.arange(len(answer.ids)) + start for start, answer in zip(first, answers, strict=True)]
        ),
        TARGETS: torch.tensor([token for answer in answers for token in answer.ids]),
        OWNERS: torch.arange(len(answers)).repeat_interleave(lengths),
        LENGTHS: lengths,
        FINISHED: torch.tensor([float(answer.is_finished) for answer in answers]),
    }


def answer_batches(answers: Sequence[Answer], collate: Collator, size: int) -> list[Batch]:
    """Make batches of `size` answers."""
    return [answer_batch(answers[start : start + size], collate) for start in range(0, len(answers), size)]


def token_outputs(
    model: nn.Module, batch: Mapping[str, Any], *, temperature: float = 1.0, value_head: ValueHead | None = None
) -> TokenOutputs:
    """Return what the policy makes of the answer tokens of a batch, with gradient where gradients are on.

    Log-probabilities are those of the distribution at the given temperature, from which the tokens were drawn (before
    top-k and top-p); 0 stands for 1, as a greedy answer has no distribution of its own. The value head must be a part
    of the model: it runs inside the model's own forward pass.
    """
    inputs = model_inputs({name: value for name, value in batch.items() if not name.startswith(PREFIX)})
    compute = partial(read_tokens, targets_K=batch[TARGETS], temperature=temperature or 1.0, value_head=value_head)
    found = model(**inputs, use_cache=False, readout=Readout(batch[POSITIONS], compute))
    return TokenOutputs(*found)


def read_tokens(
    hidden_KD: Tensor, head: OutputHead, *, targets_K: Tensor, temperature: float, value_head: ValueHead | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return log-probabilities, entropies and values."""
    softcap = None if head.softcap is None else head.softcap / temperature
    found = linear_log_probs(
        hidden_KD, head._replace(scale=head.scale / temperature, softcap=softcap), targets_K, with_entropy=True
    )
    entropies_K = torch.zeros_like(found.logps_K) if found.entropies_K is None else found.entropies_K
    values_K = None if value_head is None else value_head(hidden_KD).float()
    return found.logps_K, entropies_K, values_K
