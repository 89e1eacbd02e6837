"""Scores of a reward model: one number per text, read off its last token."""

from collections.abc import Sequence

import torch
from torch import nn

from ..model.readout import Readout
from ..train.rm.scoring import read_scores


@torch.inference_mode()
def score_rows(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[float]:
    """Return the score of each row of token ids; rows are read one by one, so that none is padded."""
    device = next(model.parameters()).device
    scores: list[float] = []
    for row in rows:
        last = torch.tensor([len(row) - 1], device=device)
        ids = torch.tensor([list(row)], device=device)
        scores.append(float(model(input_ids=ids, use_cache=False, readout=Readout(last, read_scores))))
    return scores
