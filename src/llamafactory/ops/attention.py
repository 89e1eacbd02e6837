"""Causal attention over documents that lie end to end, each of which sees itself only.

A mask over all tokens grows with the square of the batch, most of it hidden; here the bounds of the documents are
used instead, and there is no padding. `document_attention` picks what is fastest for the device;
`reference_attention` is the definition that everything else is compared with.

Shapes: T tokens of all documents, N documents, H query heads, G key/value heads (R = H / G query heads share one),
D size of a query and a key, E size of a value.
"""

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, scaled_dot_product_attention

from .attention_blocks import Blocks
from .attention_case import Documents, Scores
from .attention_gpu import varlen_attention
from .attention_native import NativeAttention, native_attention


def document_attention(
    query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, documents: Documents, scores: Scores
) -> Tensor:
    """Return what each token reads, [T, H, E], by the fastest way that covers the case.

    CUDA: a varlen kernel of torch or of flash-attn. CPU in bfloat16: our own kernel where the processor has what it
    needs; else, and in float32, SDPA forward and a backward pass in blocks. Other formats: SDPA document by document,
    and the reference where scores are capped.
    """
    heads = (query_HTD, key_GTD, value_GTE)
    if query_HTD.is_cuda:
        found = varlen_attention(*heads, documents, scores)
        if found is not None:
            return found
    elif query_HTD.device.type == "cpu" and query_HTD.dtype in (torch.bfloat16, torch.float32) and not scores.dropout:
        bounds = documents.to_list()
        native = native_attention(query_HTD, value_GTE, bounds, scores)
        if native is not None:
            return cast(Any, FusedAttention).apply(*heads, native)
        return cast(Any, BlockedAttention).apply(*heads, bounds, scores)
    if scores.softcap is not None:
        return reference_attention(*heads, documents, scores)
    return attend_by_document(*heads, documents.to_list(), scores)


def reference_attention(
    query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, documents: Documents, scores: Scores
) -> Tensor:
    """Return the same as `document_attention`, [T, H, E], written as its definition; softmax in float32 or wider."""
    num_shared = query_HTD.shape[0] // key_GTD.shape[0]
    wide = torch.promote_types(query_HTD.dtype, torch.float32)
    read: list[Tensor] = []
    for start, end in pairwise(documents.to_list()):
        query, key, value = query_HTD[:, start:end], key_GTD[:, start:end], value_GTE[:, start:end]
        key, value = (heads.repeat_interleave(num_shared, dim=0) for heads in (key, value))
        products = query @ key.transpose(1, 2) * scores.scale
        if scores.softcap is not None:
            products = scores.softcap * torch.tanh(products / scores.softcap)
        seen = is_seen(end - start, scores.window, query.device)
        weights = products.masked_fill(~seen, -torch.inf).softmax(dim=-1, dtype=wide).to(query.dtype)
        read.append((dropout(weights, scores.dropout) @ value).transpose(0, 1))
    return torch.cat(read)


def attend_by_document(
    query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, bounds: list[int], scores: Scores
) -> Tensor:
    """Return the same through F.scaled_dot_product_attention, one document at a time; it cannot cap scores."""
    read: list[Tensor] = []
    for start, end in pairwise(bounds):
        is_narrow = scores.window is not None and scores.window < end - start
        seen = is_seen(end - start, scores.window, query_HTD.device) if is_narrow else None
        document = scaled_dot_product_attention(
            query_HTD[None, :, start:end],
            key_GTD[None, :, start:end],
            value_GTE[None, :, start:end],
            attn_mask=seen,
            dropout_p=scores.dropout,
            is_causal=seen is None,
            scale=scores.scale,
            enable_gqa=query_HTD.shape[0] != key_GTD.shape[0],
        )
        read.append(document[0].transpose(0, 1))
    return torch.cat(read)


def is_seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return [length, length], true where a token (row) sees another one (column)."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


class FusedAttention(torch.autograd.Function):
    """Attention on a CPU by the library's kernels; one number of each token and head is kept beside the inputs."""

    @staticmethod
    def forward(ctx: Any, query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, native: NativeAttention) -> Tensor:
        """Return what each token reads, [T, H, E]."""
        read_THE, normalisers_HT = native.read(query_HTD, key_GTD, value_GTE)
        ctx.save_for_backward(query_HTD, key_GTD, value_GTE, normalisers_HT)
        ctx.native = native
        return read_THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of query, key and value, given that of the [T, H, E]."""
        return *ctx.native.gradients(*ctx.saved_tensors, grad_THE), None


class BlockedAttention(torch.autograd.Function):
    """Attention on a CPU with the backward pass of `Blocks`; nothing but the inputs is kept for that."""

    @staticmethod
    def forward(
        ctx: Any, query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, bounds: list[int], scores: Scores
    ) -> Tensor:
        """Through SDPA, which is fast forward, unless scores are capped or a window cuts a document."""
        ctx.save_for_backward(query_HTD, key_GTD, value_GTE)
        ctx.bounds, ctx.scores = bounds, scores
        is_cut = scores.window is not None and any(end - start > scores.window for start, end in pairwise(bounds))
        if is_cut or scores.softcap is not None:
            return Blocks(query_HTD, key_GTD, value_GTE, bounds, scores).read()
        return attend_by_document(query_HTD, key_GTD, value_GTE, bounds, scores)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value, given that of the [T, H, E]."""
        query_HTD, key_GTD, value_GTE = ctx.saved_tensors
        blocks = Blocks(query_HTD, key_GTD, value_GTE, ctx.bounds, ctx.scores)
        return *blocks.gradients(grad_outputs[0]), None, None
