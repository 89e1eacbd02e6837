"""What a batch is, for every collator that makes one and every stage that reads one. Shapes: B rows, T tokens.

- `input_ids` [B, T].
- `labels` [B, T]: the token itself where it is learned, IGNORE_INDEX elsewhere. Models get no labels.
- `attention_mask` [B, T]: 1 on tokens, 0 on padding. Or [B, 1, T, T]: numbers that are added to the attention scores.
- `loss_weights` [B, T], only where messages count differently: what the loss of each label is multiplied by.
- `position_ids` [B, T], only where a row may hold several documents: they start again at 0 with each of them, also
  with the padding behind the last one. Then a [B, T] mask is for counting only. The model must not get it: without
  a mask and without a cache it finds the documents by their positions, and with one it would let them see each other.
- `cu_seq_lens_q`, `cu_seq_lens_k` [N + 1] (int32), `max_length_q`, `max_length_k` (int), only in flat batches for a
  kernel that takes bounds: where the documents begin and end, padding included, and the length of the longest one.
  They are made on the host, so that no layer has to wait for the device.
- `documents` [B, T], `shared_tokens` and `shared_places`, only where dialogues share tokens (shared_prefix.py): the
  number of each token's dialogue; all dialogues as token numbers, end to end, which is what the bounds are about; and
  where in these each token stands.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias


if TYPE_CHECKING:
    from torch import Tensor


TokenBatch: TypeAlias = dict[str, Any]
"""Tensors by name, and lengths that are better known on the host."""


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the forward pass takes: no labels, and no mask that would hide the bounds of documents."""
    hidden = {"labels", "loss_weights", "documents"}
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


def sequence_bounds(position_ids_BT: "Tensor") -> dict[str, Any]:
    """Return the bounds of documents under the names that transformers' models pass on to their attention."""
    bounds = document_bounds(position_ids_BT)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def documents_of(batch: Mapping[str, Any]) -> "Tensor":
    """Number the documents of a batch from 0 in reading order: [B, T], for flat, packed and padded batches alike.

    Padding belongs to the document before it, or (with position_ids) is a document behind the others of its row.
    """
    import torch

    if "documents" in batch:
        return batch["documents"]
    positions = batch.get("position_ids")
    if positions is None:
        ids = batch["input_ids"]
        return torch.arange(ids.shape[0], device=ids.device).unsqueeze(1).expand_as(ids)
    return (positions.reshape(-1) == 0).cumsum(dim=0).sub(1).view_as(positions)
