"""Products with the two thin matrices of an adapter: on a CPU in bfloat16 by low_rank.cpp, else by PyTorch.

Such a product does little but read a long matrix, and a library's product, which is made for wide ones, takes about
twice as long as that. What learns gets its gradient in float32. Shapes: N tokens, W width of the long matrix, R rank.
"""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from .native import native_library


CHUNK = 32
"""Widths are multiples of it: that many bfloat16 fill a register."""
MOST_RANKS = 32
"""A library's product is as fast above it."""


def shrink(rows_NW: Tensor, vectors_RW: Tensor) -> Tensor:
    """Return rows times the transpose of vectors, [N, R]."""
    library = _library_for(rows_NW, vectors_RW, vectors_RW.shape[0])
    if library is None:
        return rows_NW @ vectors_RW.t()
    out_NR = rows_NW.new_empty((rows_NW.shape[0], vectors_RW.shape[0]))
    strides = rows_NW.stride(0), *vectors_RW.stride()
    _run(library.low_rank_dot, (rows_NW, vectors_RW, out_NR), out_NR.shape[1], strides)
    return out_NR


def add_grown(rows_NW: Tensor, left_NR: Tensor, vectors_RW: Tensor) -> Tensor:
    """Add left times vectors to the rows, in place; returns the rows."""
    library = _library_for(rows_NW, left_NR, left_NR.shape[1])
    if library is None or left_NR.stride(1) != 1 or vectors_RW.dtype != left_NR.dtype:
        return rows_NW.addmm_(left_NR, vectors_RW)
    strides = rows_NW.stride(0), left_NR.stride(0), *vectors_RW.stride()
    _run(library.low_rank_add, (rows_NW, left_NR, vectors_RW), left_NR.shape[1], strides)
    return rows_NW


def correlate(left_NR: Tensor, rows_NW: Tensor) -> Tensor:
    """Return the transpose of left times rows, [R, W]: in float32, or in the format of the rows."""
    library = _library_for(rows_NW, left_NR, left_NR.shape[1])
    if library is None or left_NR.stride(1) != 1:
        return left_NR.t() @ rows_NW
    out_RW = rows_NW.new_empty((left_NR.shape[1], rows_NW.shape[1]), dtype=torch.float32)
    strides = rows_NW.stride(0), left_NR.stride(0)
    _run(library.low_rank_outer, (rows_NW, left_NR, out_RW), left_NR.shape[1], strides)
    return out_RW


def _library_for(rows_NW: Tensor, other: Tensor, rank: int) -> ctypes.CDLL | None:
    is_covered = (
        rows_NW.device.type == other.device.type == "cpu"
        and rows_NW.dtype == other.dtype == torch.bfloat16
        and rows_NW.stride(1) == 1
        and rows_NW.shape[1] % CHUNK == rank % 2 == 0
        and 0 < rank <= MOST_RANKS
    )
    return low_rank_library() if is_covered else None


@functools.cache
def low_rank_library() -> ctypes.CDLL | None:
    """Return the library where it has something in it: on processors that multiply bfloat16 by AVX512."""
    library = native_library("low_rank")
    return library if library is not None and hasattr(library, "low_rank_dot") else None


def _run(function: Any, tensors: tuple[Tensor, ...], rank: int, strides: tuple[int, ...]) -> None:
    places = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
    sizes = (ctypes.c_int64 * 3)(*tensors[0].shape, rank)
    function(*places, sizes, (ctypes.c_int64 * len(strides))(*strides))
