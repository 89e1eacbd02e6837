"""Attention over documents against its definition: values, and gradients of query, key and value."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from llamafactory.ops import attention as attention_module
from llamafactory.ops import attention_native
from llamafactory.ops.attention import attend_by_document, document_attention, reference_attention
from llamafactory.ops.attention_case import Documents, Scores
from llamafactory.ops.attention_native import LONG_FOR_TILES, attention_library, native_attention


BOUNDS = [0, 1, 40, 240, 245]  # one token; less and more than a block of queries
CASES = {
    "plain": Scores(0.3),
    "window": Scores(0.3, window=7),
    "window of a block": Scores(0.3, window=130),
    "wide window": Scores(0.3, window=1000),
    "one token": Scores(0.3, window=1),
    "soft cap": Scores(0.5, softcap=2.0),
    "both": Scores(0.5, window=50, softcap=2.0),
}


@pytest.fixture(params=["fused", "in blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What bfloat16 goes through, on processors with AVX512-BF16 and a compiler, and on all others."""
    if request.param == "in blocks":
        monkeypatch.setattr(attention_module, "native_attention", lambda *case: None)
    elif attention_library() is None:
        pytest.skip("no AVX512-BF16, or no C++ compiler")
    return request.param


def documents(bounds: list[int]) -> Documents:
    return Documents(torch.tensor(bounds, dtype=torch.int32), max(end - start for start, end in pairwise(bounds)))


def make_heads(num_heads: int, num_groups: int, dtype: torch.dtype, value_size: int = 16, **rest: Any) -> Any:
    """Query, key, value and the gradient of the outcome, laid out as a model has them: [T, H, D] in memory."""
    generator = torch.Generator().manual_seed(0)
    size, length = rest.get("size", 16), rest.get("length", BOUNDS[-1])
    shapes = [(num_heads, size), (num_groups, size), (num_groups, value_size), (num_heads, value_size)]
    drawn = [torch.randn(length, *shape, generator=generator) for shape in shapes]
    drawn[0] *= rest.get("scale", 1.0)
    heads = [item.to(dtype).transpose(0, 1).requires_grad_() for item in drawn[:3]]
    return heads, drawn[3].to(dtype)


def outcome(attend: Any, heads: list[Tensor], grad: Tensor, *case: Any) -> list[Tensor]:
    read = attend(*heads, *case)
    return [read.detach(), *torch.autograd.grad(read, heads, grad)]


def errors(found: list[Tensor], truth: list[Tensor]) -> Tensor:
    pairs = zip(found, truth, strict=True)
    return torch.stack([(ours.double() - theirs).norm() / theirs.norm() for ours, theirs in pairs])


@pytest.mark.parametrize(("num_heads", "num_groups", "value_size"), [(6, 2, 16), (4, 4, 16), (3, 1, 8)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case: str, num_heads: int, num_groups: int, value_size: int):
    heads, grad = make_heads(num_heads, num_groups, torch.float32, value_size)
    exact = [item.detach().double().requires_grad_() for item in heads]

    found = outcome(document_attention, heads, grad, documents(BOUNDS), CASES[case])
    expected = outcome(reference_attention, exact, grad.double(), documents(BOUNDS), CASES[case])

    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "window", "window of a block", "soft cap", "both"])
def test_bfloat16_is_no_farther_from_the_truth_than_sdpa(case: str, way: str):
    scores = CASES[case]
    heads, grad = make_heads(6, 2, torch.bfloat16, scale=3.0)
    exact = [item.detach().double().requires_grad_() for item in heads]
    truth = outcome(reference_attention, exact, grad.double(), documents(BOUNDS), scores)

    ours = errors(outcome(document_attention, heads, grad, documents(BOUNDS), scores), truth)
    usual = (attend_by_document, BOUNDS) if scores.softcap is None else (reference_attention, documents(BOUNDS))
    theirs = errors(outcome(usual[0], heads, grad, usual[1], scores), truth)

    assert (ours <= 1.1 * theirs).all(), (way, ours, theirs)
    assert ours.max() < 0.01


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("scores", [Scores(0.125), Scores(0.125, window=200), Scores(0.125, window=90, softcap=3.0)])
@pytest.mark.parametrize("sizes", [(6, 2, 64, 64), (8, 1, 80, 16), (3, 3, 128, 96)])
def test_long_documents_are_shared_by_threads(sizes: tuple[int, ...], scores: Scores, num_threads: int):
    if attention_library() is None:
        pytest.skip("no AVX512-BF16, or no C++ compiler")
    bounds = [0, 701, 701, 724, 725]
    num_heads, num_groups, size, value_size = sizes
    heads, grad = make_heads(num_heads, num_groups, torch.bfloat16, value_size, size=size, length=bounds[-1])
    exact = [item.detach().double().requires_grad_() for item in heads]
    truth = outcome(reference_attention, exact, grad.double(), documents(bounds), scores)

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        found = outcome(document_attention, heads, grad, documents(bounds), scores)
        again = outcome(document_attention, heads, grad, documents(bounds), scores)
    finally:
        torch.set_num_threads(before)

    assert errors(found, truth).max() < 0.003
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, again, strict=True))


def test_heads_may_lie_anywhere_in_memory(way: str):
    heads, grad = make_heads(6, 2, torch.bfloat16)
    expected = outcome(document_attention, heads, grad, documents(BOUNDS), CASES["plain"])
    layouts: list[Any] = [
        lambda head: head.contiguous(),
        lambda head: head.transpose(1, 2).contiguous().transpose(1, 2),
        lambda head: torch.cat([head, head], dim=2)[:, :, : head.shape[2]],
    ]
    for lay in layouts:
        moved = [lay(item.detach()).requires_grad_() for item in heads]
        turned = lay(grad.transpose(0, 1)).transpose(0, 1)
        found = outcome(document_attention, moved, turned, documents(BOUNDS), CASES["plain"])
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs, rtol=0.0 if way == "fused" else 0.02, atol=0.0 if way == "fused" else 0.02)


def test_a_broken_number_stays_in_its_document(way: str):
    heads, grad = make_heads(6, 2, torch.bfloat16)
    with torch.no_grad():
        heads[0][0, 100, 3] = torch.nan
        heads[2][1, 200, 3] = torch.inf
    read, *grads = outcome(document_attention, heads, grad, documents(BOUNDS), CASES["plain"])

    assert not read[100, 0].isfinite().any(), way
    assert not read[200:240, 3:, 3].isfinite().any()
    others = torch.tensor([token for token in range(BOUNDS[-1]) if not 40 <= token < 240])
    assert read[others].isfinite().all()
    assert all(each[:, others].isfinite().all() for each in grads)


@pytest.mark.parametrize(
    ("has_tiles", "length", "case", "is_native"),
    [
        (True, LONG_FOR_TILES, "plain", False),
        (True, LONG_FOR_TILES - 1, "plain", True),
        (True, LONG_FOR_TILES, "window", True),
        (True, LONG_FOR_TILES, "soft cap", True),
        (False, LONG_FOR_TILES, "plain", True),
    ],
)
def test_long_documents_go_to_matrix_products_where_these_are_made_by_tiles(
    has_tiles: bool, length: int, case: str, is_native: bool, monkeypatch: pytest.MonkeyPatch
):
    if attention_library() is None:
        pytest.skip("no AVX512-BF16, or no C++ compiler")
    monkeypatch.setattr(attention_native, "has_tiles", lambda: has_tiles)
    heads = torch.zeros(2, length + 9, 16, dtype=torch.bfloat16)

    assert (native_attention(heads, heads, [0, 9, length + 9], CASES[case]) is not None) is is_native


@pytest.mark.parametrize("bounds", [[0, 40], [1, 40, 245], [0, 60, 40, 245], [0, 300]])
def test_bounds_that_do_not_cover_the_tokens_are_refused(bounds: list[int]):
    if attention_library() is None:
        pytest.skip("no AVX512-BF16, or no C++ compiler")
    heads, _ = make_heads(6, 2, torch.bfloat16)
    with pytest.raises(ValueError, match="do not cover the 245 tokens"):
        document_attention(*heads, documents(bounds), CASES["plain"])


def test_the_fused_kernel_is_left_out_where_it_does_not_fit():
    (query, _, value), _ = make_heads(6, 2, torch.bfloat16)
    narrow = value[:, :, :8]
    for case in ((query.float(), value.float(), CASES["plain"]), (query, narrow, CASES["plain"])):
        assert native_attention(case[0], case[1], BOUNDS, case[2]) is None
    assert native_attention(query, value, BOUNDS, Scores(0.3, dropout=0.1)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_formats_go_through_sdpa(dtype: torch.dtype):
    heads, grad = make_heads(6, 2, dtype)
    exact = [item.detach().double().requires_grad_() for item in heads]

    for case in ("plain", "window", "soft cap"):
        found = outcome(document_attention, heads, grad, documents(BOUNDS), CASES[case])
        expected = outcome(reference_attention, exact, grad.double(), documents(BOUNDS), CASES[case])
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours.double(), theirs, rtol=0, atol=1e-9 if dtype is torch.float64 else 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_do_not_touch_each_other(dtype: torch.dtype):
    heads, grad = make_heads(6, 2, dtype)
    changed = [item.detach().clone() for item in heads]
    for item in changed:
        item[:, 40:240] = torch.randn(item[:, 40:240].shape)
        item.requires_grad_()

    before = outcome(document_attention, heads, grad, documents(BOUNDS), CASES["plain"])
    after = outcome(document_attention, changed, grad, documents(BOUNDS), CASES["plain"])

    for ours, theirs in zip(before, after, strict=True):
        tokens = (0, 1)[ours.shape[0] != BOUNDS[-1]]
        kept = torch.cat([torch.arange(40), torch.arange(240, 245)])
        assert torch.equal(ours.index_select(tokens, kept), theirs.index_select(tokens, kept))


def test_dropout_leaves_the_mean_as_it_is():
    heads, _ = make_heads(6, 2, torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        plain = document_attention(*heads, documents(BOUNDS), Scores(0.3))
        drawn = [document_attention(*heads, documents(BOUNDS), Scores(0.3, dropout=0.2)) for _ in range(200)]

    assert not torch.equal(drawn[0], drawn[1])
    assert (torch.stack(drawn).mean(dim=0) - plain).abs().mean() < 0.03
