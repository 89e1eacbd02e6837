"""Kernels that take the bounds of documents, on a CUDA device. They are other people's; here they are chosen.

Shapes as in attention.py.
"""

import inspect
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from .attention_case import Documents, Scores


def varlen_attention(
    query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, documents: Documents, scores: Scores
) -> Tensor | None:
    """Return what each token reads, [T, H, E]; None where no installed kernel covers the case.

    flash-attn 3 comes first on the generation it was written for (its authors measure twice the speed of 2); else
    torch's own kernel, which is always there. flash-attn 2 is needed for dropout, and for soft caps without 3.
    """
    if not fits_kernels(query_HTD, value_GTE):
        return None
    heads = query_HTD.transpose(0, 1), key_GTD.transpose(0, 1), value_GTE.transpose(0, 1)
    is_hopper = torch.cuda.get_device_capability(query_HTD.device)[0] == 9
    if is_hopper and not scores.dropout and find_spec("flash_attn_interface") is not None:
        return flash_kernel(*heads, documents, scores, package="flash_attn_interface")
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
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGE: Tensor,
    documents: Documents,
    scores: Scores,
    *,
    package: str = "flash_attn",
) -> Tensor:
    """Attend through flash-attn 2, or 3, which is called flash_attn_interface and knows no dropout."""
    attend: Any = import_module(package).flash_attn_varlen_func
    dropout = {"dropout_p": scores.dropout} if package == "flash_attn" else {}
    read: Any = attend(
        query_THD,
        key_TGD,
        value_TGE,
        cu_seqlens_q=documents.bounds_N,
        cu_seqlens_k=documents.bounds_N,
        max_seqlen_q=documents.longest,
        max_seqlen_k=documents.longest,
        softmax_scale=scores.scale,
        causal=True,
        window_size=window_before(scores.window) if scores.window is not None else (-1, -1),
        softcap=scores.softcap or 0.0,
        **dropout,
    )
    return cast("tuple[Tensor, ...]", read)[0] if isinstance(read, tuple) else read  # early 3 returns log-sums too


def window_before(window: int | None) -> tuple[int, int]:
    """Return how many tokens before and after itself a token sees, as kernels count them; -1 is all."""
    return (-1, 0) if window is None else (window - 1, 0)
