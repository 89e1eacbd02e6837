"""Attention over pages: the native form is the eager one, and a query does not depend on what stands beside it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llamafactory.ops.native import native_library
from llamafactory.ops.paged_attention import PAGE, PagedRows, Pages, Reading, eager_paged_attention, paged_attention


Part = tuple[int, int, int]  # row, first token, end
HEADS, KEY_HEADS, LENGTHS = 6, 2, (100, 2, 38)
TABLE = torch.tensor([[7, 1, 4, 9], [3, 0, 0, 0], [2, 8, 0, 0]], dtype=torch.int32)
WHOLE: list[list[Part]] = [[(0, 0, 99), (1, 0, 1), (2, 0, 37)], [(0, 99, 100), (1, 1, 2), (2, 37, 38)]]
PIECES: list[list[Part]] = [[(2, 0, 20)], [(0, 0, 64)], [(2, 20, 38), (1, 0, 2)], [(0, 64, 100)]]


def run(
    function: Callable[..., Tensor], steps: Sequence[Sequence[Part]], reading: Reading, **kind: Any
) -> list[Tensor]:
    """Read the same three rows, cut into steps in some way; return each row's outputs."""
    generator = torch.Generator().manual_seed(0)
    width, dtype = kind["width"], kind["dtype"]
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    rows = [
        [torch.randn(count, length, width, generator=generator).to(dtype) for count in heads] for length in LENGTHS
    ]
    pages = Pages.make(10, KEY_HEADS, width, rows[0][0])
    out: list[list[Tensor]] = [[], [], []]
    for step in steps:
        q, k, v = (torch.cat([rows[row][i][:, start:end] for row, start, end in step], 1) for i in range(3))
        owners = torch.cat([torch.full((end - start,), row) for row, start, end in step]).int()
        positions = torch.cat([torch.arange(start, end) for _, start, end in step]).int()
        spans: list[tuple[int, int, int, int]] = []
        for row, start, end in step:
            first = spans[-1][2] if spans else 0
            spans.append((row, first, first + end - start, start))
        result = function(q, (k, v), pages, PagedRows(TABLE, owners, positions, tuple(spans)), reading)
        for row, start, end, _ in spans:
            out[row].append(result[start:end])
    return [torch.cat(parts) for parts in out]


@pytest.mark.parametrize("width", [8, 64, 80])
@pytest.mark.parametrize("reading", [Reading(0.3), Reading(0.3, softcap=5.0, window=37)], ids=["plain", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_native_and_eager_agree(dtype: torch.dtype, reading: Reading, width: int) -> None:
    some = run(paged_attention, WHOLE, reading, width=width, dtype=dtype)
    others = run(eager_paged_attention, WHOLE, reading, width=width, dtype=dtype)

    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert all(torch.allclose(a.float(), b.float(), atol=tolerance) for a, b in zip(some, others, strict=True))


def test_eager_is_scaled_dot_product_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(count, LENGTHS[0], 16, generator=generator) for count in (HEADS, KEY_HEADS, KEY_HEADS))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True, scale=0.3, enable_gqa=True
    )[0]

    (row, *_) = run(eager_paged_attention, WHOLE, Reading(0.3), width=16, dtype=torch.float32)

    assert torch.allclose(row, expected.transpose(0, 1), atol=1e-5)


@pytest.mark.skipif(native_library("paged_attention") is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_how_rows_are_put_together(dtype: torch.dtype) -> None:
    some = run(paged_attention, WHOLE, Reading(0.3), width=64, dtype=dtype)
    others = run(paged_attention, PIECES, Reading(0.3), width=64, dtype=dtype)

    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_padding_is_neither_stored_nor_computed() -> None:
    q, k = torch.randn(HEADS, 3, 16), torch.randn(KEY_HEADS, 3, 16)
    pages = Pages.make(1, KEY_HEADS, 16, q)
    pages.keys_PKES.zero_()
    where = PagedRows(
        torch.zeros(1, 1, dtype=torch.int32),
        torch.tensor([0, -1, -1], dtype=torch.int32),
        torch.tensor([0, 5, 0], dtype=torch.int32),
        ((0, 0, 1, 0),),
    )

    out = paged_attention(q, (k, k), pages, where, Reading(1.0))

    assert not out[1:].any()
    assert torch.equal(pages.keys_PKES[0, :, :, 0], k[:, 0])
    assert not pages.keys_PKES[..., 1:PAGE].any()
