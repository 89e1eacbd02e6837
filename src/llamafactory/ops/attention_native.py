"""Attention in bfloat16 on a CPU by attention.cpp: nothing goes to memory between the products.

Shapes as in attention.py.
"""

import ctypes
import functools
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .attention_case import Scores
from .native import has_tiles, native_library


LANES = 16
"""Sizes of heads must be multiples of it: that many float32 fill a register."""
LONG_FOR_TILES = 1024
"""Where the processor multiplies tiles, a library's products overtake the kernel in documents of this length."""


@dataclass(frozen=True)
class NativeAttention:
    """The library for one case; the numbers of a head lie beside each other, heads and tokens anywhere."""

    library: ctypes.CDLL
    bounds: list[int]
    scores: Scores

    def read(self, query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each token reads, [T, H, E], and for the backward pass log2 sum exp of its scores, [H, T]."""
        H, T, _ = query_HTD.shape
        heads = _with_close_numbers(query_HTD, key_GTD, value_GTE)
        read_THE = query_HTD.new_empty((T, H, value_GTE.shape[2]))
        normalisers_HT = query_HTD.new_empty((H, T), dtype=torch.float32)
        self._run("attention_forward", [*heads, read_THE.transpose(0, 1)], normalisers_HT)
        return read_THE, normalisers_HT

    def gradients(
        self, query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, normalisers_HT: Tensor, grad_THE: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value, given that of what is read; in memory they lie by tokens."""
        heads = _with_close_numbers(query_HTD, key_GTD, value_GTE, grad_THE.transpose(0, 1))
        query, key, value = (torch.empty_like(head.transpose(0, 1)).transpose(0, 1) for head in heads[:3])
        self._run("attention_backward", [*heads, query, key, value], normalisers_HT)
        return query, key, value

    def _run(self, name: str, heads: list[Tensor], normalisers_HT: Tensor) -> None:
        bounds, (H, T, D), (G, _, E) = self.bounds, heads[0].shape, heads[2].shape
        if bounds[0] != 0 or bounds[-1] != T or any(start > end for start, end in pairwise(bounds)):
            raise ValueError(f"The bounds {bounds} of documents do not cover the {T} tokens from end to end.")
        strides = [stride * heads[0].element_size() for head in heads for stride in head.stride()[:2]]
        sizes = len(bounds) - 1, H, G, D, E, self.scores.window or 0
        self.library[name](
            (ctypes.c_void_p * len(heads))(*(head.data_ptr() for head in heads)),
            (ctypes.c_int64 * len(strides))(*strides),
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_float * 2)(self.scores.scale, self.scores.softcap or 0.0),
            (ctypes.c_int64 * len(bounds))(*bounds),
            ctypes.c_void_p(normalisers_HT.data_ptr()),
        )


def native_attention(
    query_HTD: Tensor, value_GTE: Tensor, bounds: list[int], scores: Scores
) -> NativeAttention | None:
    """Return what computes the case; None where this processor, its compiler or the library does not cover it."""
    is_covered = (
        query_HTD.dtype == value_GTE.dtype == torch.bfloat16
        and query_HTD.shape[2] % LANES == value_GTE.shape[2] % LANES == 0
        and scores.scale > 0
        and not scores.dropout
        and not torch.compiler.is_compiling()
    )
    library = attention_library() if is_covered and not _favours_products(bounds, scores) else None
    return None if library is None else NativeAttention(library, bounds, scores)


def _favours_products(bounds: list[int], scores: Scores) -> bool:
    """Whether matrix products are the faster way: the kernel leaves out what a window hides, and caps by the way."""
    is_long = max(end - start for start, end in pairwise(bounds)) >= LONG_FOR_TILES
    return is_long and scores.window is None and scores.softcap is None and has_tiles()


@functools.cache
def attention_library() -> ctypes.CDLL | None:
    """Return the library where it has something in it: on processors that multiply bfloat16 by AVX512."""
    library = native_library("attention")
    return library if library is not None and hasattr(library, "attention_forward") else None


def _with_close_numbers(*heads: Tensor) -> list[Tensor]:
    return [head if head.stride(2) == 1 else head.contiguous() for head in heads]
