"""Where the rows of a batch stand in all its tokens laid end to end, told by their lengths, never by token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def row_starts(batch: Mapping[str, Any], lengths: Sequence[int]) -> Tensor:
    """Return the position [S] of each row's first token, in a batch that was padded on either side or laid flat."""
    sizes = torch.tensor(lengths)
    num_rows, width = batch["input_ids"].shape
    if num_rows != len(lengths):
        if num_rows != 1:
            raise ValueError(f"{len(lengths)} rows cannot be found in a batch of {num_rows}.")
        return sizes.cumsum(0) - sizes
    starts = torch.arange(num_rows) * width
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return starts
    return starts + (mask[:, 0] == 0) * (width - sizes)  # padding on the left moves a row to the end of its place
