"""One score per sequence: the number that a reward model reads off the last real token.

Where a sequence ends is told by its length when the batch is made, never by a token's id: padding may be the end
token, and an end token may stand inside a dialogue. Shapes: S sequences, D hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...data.batch import model_inputs
from ...data.collator import part
from ...model.readout import Readout
from ...ops.head import OutputHead
from ..objective import Batch
from ..row_places import row_starts
from ..stage import Collator


LAST_POSITIONS = "last_positions"
"""Name in a batch of the position of each sequence's last token, in all tokens of the batch laid end to end."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ScoredCollator:
    """Makes the batch of a collator, and says where each of its rows ends."""

    collate: Collator

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Return the batch with `last_positions` [S]."""
        batch = dict(self.collate([dict(row) for row in rows]))
        lengths = [len(row["input_ids"]) for row in rows]
        return {**batch, LAST_POSITIONS: row_starts(batch, lengths) + torch.tensor(lengths) - 1}

    @property
    def lays_flat(self) -> bool:
        """Whether rows are laid end to end, so that none is padded."""
        return bool(getattr(self.collate, "lays_flat", False))

    @property
    def pad_to_multiple_of(self) -> int | None:
        """The multiple that a batch is padded to."""
        return getattr(self.collate, "pad_to_multiple_of", None)


@dataclass(frozen=True)
class PairCollator:
    """Pairs become one batch: the better answers first, the worse ones after them, in the same order."""

    collate: ScoredCollator

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Return the batch of twice as many sequences."""
        return self.collate([part(row, side) for side in ("chosen_", "rejected_") for row in rows])

    @property
    def lays_flat(self) -> bool:
        """Whether rows are laid end to end, so that none is padded."""
        return self.collate.lays_flat

    @property
    def pad_to_multiple_of(self) -> int | None:
        """The multiple that a batch is padded to."""
        return self.collate.pad_to_multiple_of


def score_sequences(model: nn.Module, batch: Batch) -> Tensor:
    """Return the scores [S] of the sequences of a batch in float32, with gradient.

    They are read inside the forward pass of the model, however it is wrapped.
    """
    inputs = model_inputs({name: value for name, value in batch.items() if name != LAST_POSITIONS})
    return model(**inputs, use_cache=False, readout=Readout(batch[LAST_POSITIONS], read_scores))


def read_scores(hidden_SD: Tensor, head: OutputHead) -> Tensor:
    """Return the scores [S]; the product is made in float32 where the head is a plain matrix."""
    if head.weight_VD is None:
        scores_S1 = hidden_SD if head.project is None else head.project(hidden_SD)
        return scores_S1.float().squeeze(-1)
    bias = None if head.bias_V is None else head.bias_V.float()
    with torch.autocast(hidden_SD.device.type, enabled=False):
        return nn.functional.linear(hidden_SD.float(), head.weight_VD.float(), bias).squeeze(-1)
