"""Attention of tokens that were laid end to end over keys and values that lie in pages: the step of a running batch.

Each row (one answer) owns a list of pages; a page holds S tokens of all heads of one layer and may be shared by rows
that begin alike. One call stores the new tokens' keys and values and lets every query read its own row up to itself,
so prompts and single next tokens of many rows go together, without padding and without a mask.

Shapes: T new tokens, H query heads, K key heads, E width of a head, F that width rounded up to 16, P pages of S = 32
slots, R rows, N pages per row.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from .native import SUFFIXES, native_library


PAGE = 32
"""Tokens of a page; the same number stands in paged_attention.cpp."""
LANES = 16


@dataclass(frozen=True)
class PagedRows:
    """Where the tokens of a step belong; all int32, on the device of the pages."""

    table_RN: Tensor
    """The pages of each row in order; what lies behind a row's end is never read."""
    rows_T: Tensor
    """The row of each token; -1 for padding, which is neither stored nor computed."""
    positions_T: Tensor
    """Its position in its row; a row's tokens stand together and in order."""
    spans: tuple[tuple[int, int, int, int], ...]
    """(row, first token, end, position of the first token) of each row that takes part, for the eager form."""


@dataclass(frozen=True)
class Pages:
    """The keys and values of one layer; keys lie transposed, because that is how they are read fastest."""

    keys_PKES: Tensor
    values_PKSF: Tensor

    @staticmethod
    def make(num_pages: int, num_heads: int, width: int, like: Tensor) -> "Pages":
        """Make room on the device and in the format of a tensor; memory that is never written is never used."""
        wide = -(-width // LANES) * LANES
        keys_PKES = like.new_empty(num_pages, num_heads, width, PAGE)
        values_PKSF = like.new_empty(num_pages, num_heads, PAGE, wide)
        if wide > width:
            values_PKSF.zero_()
        return Pages(keys_PKES, values_PKSF)

    @staticmethod
    def num_bytes(num_heads: int, width: int, dtype: torch.dtype) -> int:
        """Return what one page of one layer takes."""
        return num_heads * (width + -(-width // LANES) * LANES) * PAGE * dtype.itemsize


@dataclass(frozen=True)
class Reading:
    """How scores are made of queries and keys."""

    scale: float
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap)."""
    window: int | None = None
    """A query reads only this many positions, its own included."""


def paged_attention(
    q_HTE: Tensor, new: tuple[Tensor, Tensor], pages: Pages, where: PagedRows, reading: Reading
) -> Tensor:
    """Store the new keys and values [K, T, E] and return the heads' outputs [T, H, E]; padding gives zeros.

    On a CPU with a C++ compiler (bf16 and float32) a query's result is bit for bit independent of what else is in the
    call. The eager form computes the same, row by row, with float32 scores.
    """
    is_native = q_HTE.device.type == "cpu" and q_HTE.dtype in SUFFIXES and pages.keys_PKES.dtype == q_HTE.dtype
    library = native_library("paged_attention") if is_native else None
    if library is None:
        return eager_paged_attention(q_HTE, new, pages, where, reading)
    return _native(library, q_HTE, new, pages, where, reading)


def eager_paged_attention(
    q_HTE: Tensor, new: tuple[Tensor, Tensor], pages: Pages, where: PagedRows, reading: Reading
) -> Tensor:
    """The reference: any device, any format."""
    H, T, E = q_HTE.shape
    K = pages.keys_PKES.shape[1]
    out_THE = q_HTE.new_zeros(T, H, E)
    for row, start, end, first in where.spans:
        length = first + end - start
        numbers = where.table_RN[row, : -(-length // PAGE)].long()
        positions = torch.arange(first, length, device=q_HTE.device)
        k_TKE, v_TKE = (some[:, start:end].transpose(0, 1) for some in new)
        pages.keys_PKES[numbers[positions // PAGE], :, :, positions % PAGE] = k_TKE
        pages.values_PKSF[numbers[positions // PAGE], :, positions % PAGE, :E] = v_TKE
        keys_KEL = pages.keys_PKES[numbers].permute(1, 2, 0, 3).reshape(K, E, -1)[..., :length].float()
        values_KLE = pages.values_PKSF[numbers].transpose(0, 1).flatten(1, 2)[:, :length, :E].float()
        scores = q_HTE[:, start:end].float().reshape(K, -1, E) @ keys_KEL * reading.scale
        if reading.softcap:
            scores = reading.softcap * torch.tanh(scores / reading.softcap)
        behind = positions[:, None] - torch.arange(length, device=q_HTE.device)
        hidden = behind < 0
        if reading.window:
            hidden |= behind >= reading.window
        scores = scores.view(H, end - start, length).masked_fill(hidden, -torch.inf).softmax(-1)
        out_HtE = (scores.view(K, -1, length) @ values_KLE).view(H, end - start, E)
        out_THE[start:end] = out_HtE.transpose(0, 1).to(out_THE.dtype)
    return out_THE


def _native(
    library: ctypes.CDLL, q_HTE: Tensor, new: tuple[Tensor, Tensor], pages: Pages, where: PagedRows, reading: Reading
) -> Tensor:
    H, T, E = q_HTE.shape
    K = pages.keys_PKES.shape[1]
    q_HTE, k_KTE, v_KTE = (some if some.stride(2) == 1 else some.contiguous() for some in (q_HTE, *new))
    has_padding = where.spans[-1][2] < T
    out_THE = q_HTE.new_zeros(T, H, E) if has_padding else q_HTE.new_empty(T, H, E)
    tensors = (q_HTE, k_KTE, v_KTE, pages.keys_PKES, pages.values_PKSF)
    places = (*tensors, where.table_RN, where.rows_T, where.positions_T, out_THE)
    strides = (some.stride(axis) for some in (q_HTE, k_KTE, v_KTE) for axis in (0, 1))
    sizes = (T, H, K, E, where.table_RN.shape[1], reading.window or 0, *strides)
    library[f"paged_attention_{SUFFIXES[q_HTE.dtype]}"](
        (ctypes.c_void_p * len(places))(*(some.data_ptr() for some in places)),
        (ctypes.c_int64 * len(sizes))(*sizes),
        ctypes.c_float(reading.scale),
        ctypes.c_float(reading.softcap or 0.0),
    )
    return out_THE
