"""Products with an adapter's thin matrices: the library's against PyTorch's own in float64."""

import pytest
import torch
from torch import Tensor

from llamafactory.ops import low_rank
from llamafactory.ops.low_rank import MOST_RANKS, add_grown, correlate, low_rank_library, shrink


pytestmark = pytest.mark.skipif(low_rank_library() is None, reason="no AVX512-BF16, or no C++ compiler")
SIZES = [(1, 32, 2), (37, 64, 8), (130, 160, 6), (200, 192, 24), (128, 96, 32)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """The sum is exact but for float32, and rounded once where the result is short."""
    limit = 0.004 if found.dtype is torch.bfloat16 else 1e-5
    assert (found.double() - exact).abs().max() <= limit * exact.abs().max()


def cut(wide: Tensor, width: int) -> Tensor:
    """Columns out of a wider matrix: the strides of a stacked input."""
    return torch.cat([wide.new_zeros(wide.shape[0], 3), wide, wide.new_ones(wide.shape[0], 5)], dim=1)[
        :, 3 : 3 + width
    ]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(("num", "width", "rank"), SIZES)
def test_thin_products_are_those_of_the_definition(num: int, width: int, rank: int, num_threads: int):
    rows, vectors, left = draw(num, width), draw(rank, width, seed=1), draw(num, rank, seed=2)
    turned = vectors.t().contiguous().t()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for some_rows, some_left in ((rows, left), (cut(rows, width), cut(left, rank))):
            for some_vectors in (vectors, turned):
                shrunk = shrink(some_rows, some_vectors)
                grown = add_grown(some_rows.clone(), some_left, some_vectors)
                assert_rounded(shrunk, rows.double() @ vectors.double().t())
                assert_rounded(grown, rows.double() + left.double() @ vectors.double())
            summed = correlate(some_left, some_rows)
            assert summed.dtype is torch.float32
            assert_rounded(summed, left.double().t() @ rows.double())
    finally:
        torch.set_num_threads(before)


def test_what_lies_beside_the_rows_is_left_alone():
    wide = draw(13, 96)
    before, rows = wide.clone(), wide[:, 32:64]
    assert add_grown(rows, draw(13, 4, seed=1), draw(4, 32, seed=2)) is rows
    assert torch.equal(wide[:, :32], before[:, :32])
    assert torch.equal(wide[:, 64:], before[:, 64:])
    assert not torch.equal(rows, before[:, 32:64])


@pytest.mark.parametrize("case", ["float32", "odd rank", "width", "many ranks", "columns apart"])
def test_other_cases_go_to_pytorch(case: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(low_rank, "_run", lambda *call: pytest.fail("the library was called"))
    width = 40 if case == "width" else 64
    rank = {"odd rank": 7, "many ranks": MOST_RANKS + 2}.get(case, 8)
    dtype = torch.float32 if case == "float32" else torch.bfloat16
    rows, vectors, left = (
        part.to(dtype) for part in (draw(9, width), draw(rank, width, seed=1), draw(9, rank, seed=2))
    )
    if case == "columns apart":
        rows = rows.t().contiguous().t()
    torch.testing.assert_close(shrink(rows, vectors), rows @ vectors.t())
    torch.testing.assert_close(correlate(left, rows), left.t() @ rows)
    expected = torch.addmm(rows, left, vectors)
    torch.testing.assert_close(add_grown(rows.clone(memory_format=torch.preserve_format), left, vectors), expected)
