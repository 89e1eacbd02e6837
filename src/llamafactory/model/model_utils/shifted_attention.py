"""Shifted sparse attention (S2-Attn of LongLoRA, arxiv.org/abs/2309.12307), in training only.

A text is cut into groups of a quarter of the longest length that is trained (`cutoff_len`), and attention stays within
a group. Half of the heads read groups that are shifted by half a group, so that what is learned passes from one group
to the next. The cost of a whole text falls to about a quarter, and since nothing but the pattern changes, the model
answers with its full attention afterwards. A text that is shorter than a group is read whole by the first heads.

The paper rolls the tokens, so the last group of the shifted heads would hold the end of a text and its beginning; the
two do not see each other here, as they are half a group each. Groups lie within documents: in packed rows and flat
batches every document begins with a group of its own, and in padded rows padding is no part of a text.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ...ops.attention import document_attention
from ...ops.attention_case import Documents
from .flat_attention import are_documents, attend, find_documents, lay_flat, make_mask, scores_of


SHIFTED_ATTENTION = "llamafactory_shifted"
"""How the name begins under which transformers knows it; the length of a group follows."""
NUM_GROUPS = 4
"""A group is a quarter of the longest text: the ratio that the paper recommends."""


def register_shifted_attention(cutoff_len: int) -> str:
    """Make the attention for texts of so many tokens known to transformers, and return its name."""
    group_len = max(cutoff_len // NUM_GROUPS, 2)
    name = f"{SHIFTED_ATTENTION}_{group_len}"
    AttentionInterface.register(name, functools.partial(attend_shifted, group_len=group_len))
    AttentionMaskInterface.register(name, make_padding_mask)
    return name


def make_padding_mask(
    *, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **case: Any
) -> Tensor | None:
    """Return the mask of padded rows as it is [B, T], of which bounds are made, wherever bounds say everything."""
    is_whole = q_length == kv_length and case.get("kv_offset", 0) == 0 and are_documents(**case)
    if is_whole and attention_mask is not None and attention_mask.dim() == 2 and attention_mask.shape[1] == q_length:
        return attention_mask
    return make_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **case)


def attend_shifted(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    group_len: int,
    **case: Any,
) -> tuple[Tensor, None]:
    """Return what every token reads, [B, T, H, E]: in its group while the module trains, else in its whole text."""
    if attention_mask is not None and attention_mask.dim() == 2 and case.get("cu_seq_lens_q") is None:
        bounds = padding_bounds(attention_mask)
        case |= {"cu_seq_lens_q": bounds, "max_length_q": query.shape[2]}
        attention_mask = None
    documents = find_documents(module, query, key, attention_mask, case) if module.training else None
    if documents is None:
        return attend(module, query, key, value, attention_mask, **case)
    heads = lay_flat(query.to(value.dtype)), lay_flat(key.to(value.dtype)), lay_flat(value)
    plain, shifted = split_heads(*heads)
    scores = scores_of(query, case)
    read = torch.cat(
        [
            document_attention(*plain, cut_documents(documents, group_len, 0), scores),
            document_attention(*shifted, cut_documents(documents, group_len, group_len // 2), scores),
        ],
        dim=1,
    )
    return read.view(query.shape[0], query.shape[2], *read.shape[1:]), None


def split_heads(
    query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return two halves of the heads, each with the keys and values that its queries share."""
    num_heads, num_shared = query_HTD.shape[0], query_HTD.shape[0] // key_GTD.shape[0]
    half = num_heads - num_heads // 2
    if half % num_shared:  # the halves part within heads that share keys
        key_GTD, value_GTE = (heads.repeat_interleave(num_shared, dim=0) for heads in (key_GTD, value_GTE))
        num_shared = 1
    parts = (query_HTD, half), (key_GTD, half // num_shared), (value_GTE, half // num_shared)
    first, second = (heads[:size] for heads, size in parts), (heads[size:] for heads, size in parts)
    return tuple(first), tuple(second)  # pyright: ignore[reportReturnType]


def cut_documents(documents: Documents, group_len: int, shift: int) -> Documents:
    """Return the bounds of the groups, made on the device: each document anew, with a first group of `shift` if any.

    There are as many bounds for every document as for the longest; those beyond its end make empty groups, which only
    kernels on accelerators take.
    """
    starts, lengths = documents.bounds_N[:-1], documents.bounds_N.diff()
    num_cuts = max(-(-(documents.longest - shift) // group_len), 0)
    inner = torch.arange(num_cuts, device=starts.device) * group_len + shift
    if shift:
        inner = torch.cat([inner.new_zeros(1), inner])
    bounds = starts.unsqueeze(1) + torch.minimum(inner, lengths.unsqueeze(1))
    bounds = torch.cat([bounds.flatten(), documents.bounds_N[-1:]]).to(torch.int32)
    if bounds.device.type == "cpu":
        bounds = bounds.unique_consecutive()
    return Documents(bounds, min(group_len, documents.longest))


def padding_bounds(mask_BT: Tensor) -> Tensor:
    """Return where texts and stretches of padding begin in padded rows laid end to end, and the end of the last."""
    is_real = mask_BT != 0
    begins = torch.ones_like(is_real)
    begins[:, 1:] = is_real[:, 1:] != is_real[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    return torch.cat([starts, starts.new_tensor([mask_BT.numel()])]).to(torch.int32)
