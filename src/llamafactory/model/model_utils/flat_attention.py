"""The attention "llamafactory" of transformers: batches without padding go by the bounds of their documents.

A model calls it in four ways, and each must be right:

- a flat batch with `cu_seq_lens_q` and `max_length_q` (collators make them on the host): our own kernels;
- rows with nothing but `position_ids`, which start again at each document: the bounds are read off them;
- a padded batch with a mask, or a mask of a kind that bounds cannot express: SDPA with transformers' mask for it;
- a key-value cache in generation: SDPA, which gets the mask that it would get without us.

So a mask is made in the last two cases only, and whoever sees none and as many keys as queries goes by bounds. A
window over a document and the soft cap of scores come as arguments, as they do for flash attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ...ops.attention import document_attention
from ...ops.attention_case import Documents, Scores


FLAT_ATTENTION = "llamafactory"
"""The name under which transformers knows it."""


def register_flat_attention() -> None:
    """Make the name known to transformers; again is no harm."""
    AttentionInterface.register(FLAT_ATTENTION, attend)
    AttentionMaskInterface.register(FLAT_ATTENTION, make_mask)


def can_attend_flat(model: PreTrainedModel) -> bool:
    """Whether the attention of a model can be replaced: it goes through transformers' interface in a plain way.

    A model that works with flash attention hands over its window and expects no mask. One that refuses SDPA does
    something more to its scores, of which the soft cap is what we know; attention sinks we do not.
    """
    text_config: Any = model.config.get_text_config()
    is_plain = model._supports_sdpa or getattr(text_config, "attn_logit_softcapping", None) is not None
    has_sinks = any(hasattr(module, "sinks") for module in model.modules())
    is_open = getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_flash_attn", False)
    return bool(is_open and is_plain and not has_sinks)


def make_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    **rest: Any,
) -> Tensor | None:
    """Return no mask where bounds say everything, else the one of SDPA; transformers calls it once per kind of layer.

    Without a mask from outside, without a cache and without a pattern of the model's own, there are only documents.
    """
    is_whole = q_length == kv_length and kv_offset == 0
    if attention_mask is None and is_whole and are_documents(q_offset=q_offset, use_vmap=use_vmap, **rest):
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,  # pyright: ignore[reportArgumentType]
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        use_vmap=use_vmap,
        **rest,
    )


def are_documents(*, q_offset: int | Tensor = 0, use_vmap: bool = False, **rest: Any) -> bool:
    """Whether a mask would say no more than which tokens are real and where a document begins.

    A bidirectional model is known by an argument that only such masks have, attention in chunks by its config.
    """
    in_chunks = getattr(rest.get("config"), "attention_chunk_size", None) is not None
    is_two_way = "allow_is_bidirectional_skip" in rest
    return isinstance(q_offset, int) and q_offset == 0 and not (use_vmap or in_chunks or is_two_way)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **case: Any
) -> tuple[Tensor, None]:
    """Return what every token reads, [B, T, H, E]; query [B, H, T, D], key and value with as many heads or fewer."""
    if case.get("s_aux") is not None:
        raise ValueError("Attention sinks are not known to the attention llamafactory; set flash_attn: disabled.")
    documents = find_documents(module, query, key, attention_mask, case)
    if documents is None:
        return attend_masked(module, query, key, value, attention_mask, **case)
    scores = scores_of(query, case)
    # Under autocast the projections are short, but float32 angles (of a float32 embedding) make q and k wide again.
    heads = lay_flat(query.to(value.dtype)), lay_flat(key.to(value.dtype)), lay_flat(value)
    tokens, places = case.get("shared_tokens"), case.get("shared_places")
    if tokens is None or places is None:
        read = document_attention(*heads, documents, scores)
    else:  # dialogues that share tokens are put together here (data/shared_prefix.py)
        whole = heads[0].index_select(1, tokens), heads[1].index_select(1, tokens), heads[2].index_select(1, tokens)
        read = document_attention(*whole, documents, scores).index_select(0, places)
    return read.view(query.shape[0], query.shape[2], *read.shape[1:]), None


def scores_of(query: Tensor, case: dict[str, Any]) -> Scores:
    """Return what a model does to its scores, from what it passes on to its attention."""
    scale = case.get("scaling")
    return Scores(
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        window=case.get("sliding_window"),
        softcap=case.get("softcap"),
        dropout=float(case.get("dropout") or 0.0),
    )


def find_documents(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, case: dict[str, Any]
) -> Documents | None:
    """Return the bounds of the documents in the rows laid end to end; None where a mask or a cache decides."""
    is_causal = case.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    has_more = case.get("position_bias") is not None or case.get("cache") is not None
    num_rows, length = query.shape[0], query.shape[2]
    if not is_causal or has_more or key.shape[2] != length:
        return None
    bounds, longest = case.get("cu_seq_lens_q"), case.get("max_length_q")
    if bounds is not None and longest is not None:
        return Documents(bounds, int(longest))
    if attention_mask is not None:
        return None
    return documents_of_rows(case.get("position_ids"), num_rows, length, query.device)


def documents_of_rows(positions: Tensor | None, num_rows: int, length: int, device: torch.device) -> Documents:
    """Read the bounds off positions that do not go on by one; without positions every row is a document."""
    if positions is None:
        return Documents(torch.arange(num_rows + 1, dtype=torch.int32, device=device) * length, length)
    if positions.dim() == 3:  # of text, and of two directions in images
        positions = positions[0]
    positions = positions.expand(num_rows, length)
    goes_on = torch.zeros(num_rows, length, dtype=torch.bool, device=positions.device)
    goes_on[:, 1:] = positions.diff(dim=1) == 1
    starts = (~goes_on.flatten()).nonzero().squeeze(1)
    bounds = torch.cat([starts, starts.new_tensor([num_rows * length])]).to(device=device, dtype=torch.int32)
    return Documents(bounds, int(bounds.diff().max()))


def lay_flat(heads: Tensor) -> Tensor:
    """[B, H, T, D] -> [H, B * T, D]."""
    return heads[0] if heads.shape[0] == 1 else heads.transpose(0, 1).flatten(1, 2)


def attend_masked(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **case: Any
) -> tuple[Tensor, None]:
    """Attend as without us: through SDPA, or by hand where scores are capped, which SDPA cannot."""
    softcap = case.get("softcap")
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **case)
    num_shared, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (heads.repeat_interleave(num_shared, dim=1) for heads in (key, value))
    if attention_mask is None and length > 1:
        key, value = key[:, :, :length], value[:, :, :length]  # an empty static cache is longer
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scale = case.get("scaling")
    products = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    products = softcap * torch.tanh(products / softcap)
    if attention_mask is not None:
        is_bool = attention_mask.dtype == torch.bool
        hidden = torch.finfo(products.dtype).min
        products = products.masked_fill(~attention_mask, hidden) if is_bool else products + attention_mask
    weights = products.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (drop(weights, float(case.get("dropout") or 0.0)) @ value).transpose(1, 2), None
