"""Kernels that take the bounds of documents, on a CUDA device. They are other people's; here they are chosen.

Shapes as in attention.py.
"""

import inspect
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .attention_case import Documents, Scores


def varlen_attention(
    query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, documents: Documents, scores: Scores
) -> Tensor | None:
    """Return what each token reads, [T, H, E]; None where no installed kernel covers the case.

    torch's own kernel comes first: it is always there. flash-attn is needed for soft caps and dropout.
    """
    if not fits_kernels(query_HTD, value_GTE):
        return None
    heads = query_HTD.transpose(0, 1), key_GTD.transpose(0, 1), value_GTE.transpose(0, 1)
    if has_torch_kernel() and scores.softcap is None and not scores.dropout:
        return torch_kernel(*heads, documents, scores)
    return flash_kernel(*heads, documents, scores) if find_spec("flash_attn") is not None else None


def fits_kernels(query_HTD: Tensor, value_GTE: Tensor) -> bool:
    """Short floats, equal sizes of at most 256, and a device of the Ampere generation or later."""
    size = query_HTD.shape[2]
    is_short = query_HTD.dtype in (torch.float16, torch.bfloat16)
    if not is_short or size != value_GTE.shape[2] or size > 256 or size % 8:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(query_HTD.device) >= (8, 0)


@cache
def has_torch_kernel() -> bool:
    """Whether torch has the varlen kernel with windows and shared keys (2.10 had it without)."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention import varlen

    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen.varlen_attn).parameters.keys()


def torch_kernel(
    query_THD: Tensor, key_TGD: Tensor, value_TGE: Tensor, documents: Documents, scores: Scores
) -> Tensor:
    """Attend through torch.nn.attention.varlen."""
    from torch.nn.attention.varlen import varlen_attn

    read: Any = varlen_attn(
        query_THD,
        key_TGD,
        value_TGE,
        documents.bounds_N,
        documents.bounds_N,
        documents.longest,
        documents.longest,
        scale=scores.scale,
        window_size=window_before(scores.window),
        enable_gqa=query_THD.shape[1] != key_TGD.shape[1],
    )
    return read


def flash_kernel(
    query_THD: Tensor, key_TGD: Tensor, value_TGE: Tensor, documents: Documents, scores: Scores
) -> Tensor:
    """Attend through flash-attn 2."""
    attend: Any = import_module("flash_attn").flash_attn_varlen_func
    return attend(
        query_THD,
        key_TGD,
        value_TGE,
        documents.bounds_N,
        documents.bounds_N,
        documents.longest,
        documents.longest,
        dropout_p=scores.dropout,
        softmax_scale=scores.scale,
        causal=True,
        window_size=window_before(scores.window) if scores.window is not None else (-1, -1),
        softcap=scores.softcap or 0.0,
    )


def window_before(window: int | None) -> tuple[int, int]:
    """Return how many tokens before and after itself a token sees, as kernels count them; -1 is all."""
    return (-1, 0) if window is None else (window - 1, 0)
