"""What a batch is, for every collator that makes one and every stage that reads one. Shapes: B rows, T tokens.

- `input_ids` [B, T].
- `labels` [B, T]: the token itself where it is learned, IGNORE_INDEX elsewhere. Models get no labels.
- `attention_mask` [B, T]: 1 on tokens, 0 on padding. Or [B, 1, T, T]: numbers that are added to the attention scores.
- `position_ids` [B, T], only where a row may hold several documents: they start again at 0 with each of them, also
  with the padding behind the last one. Then a [B, T] mask is for counting only. The model must not get it: without
  a mask and without a cache it finds the documents by their positions, and with one it would let them see each other.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias


if TYPE_CHECKING:
    from torch import Tensor


TokenBatch: TypeAlias = "dict[str, Tensor]"


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the forward pass takes: no labels, and no mask that would hide the bounds of documents."""
    hidden = {"labels"}
    mask = batch.get("attention_mask")
    if "position_ids" in batch and mask is not None and mask.dim() == 2:
        hidden.add("attention_mask")
    return {name: value for name, value in batch.items() if name not in hidden}


def document_bounds(position_ids_BT: "Tensor") -> "Tensor":
    """Return where documents begin in the rows laid end to end, and the end of the last one (`cu_seqlens`, int32)."""
    import torch

    flat = position_ids_BT.reshape(-1)
    starts = (flat == 0).nonzero().squeeze(1)
    return torch.cat([starts, starts.new_tensor([flat.numel()])]).to(torch.int32)


def document_numbers(position_ids_BT: "Tensor") -> "Tensor":
    """Number the documents of each row from 1."""
    return (position_ids_BT == 0).cumsum(dim=-1)
