"""Attention over documents against its definition: values, and gradients of query, key and value."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from llamafactory.ops.attention import attend_by_document, document_attention, reference_attention
from llamafactory.ops.attention_case import Documents, Scores


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


def documents(bounds: list[int]) -> Documents:
    return Documents(torch.tensor(bounds, dtype=torch.int32), max(end - start for start, end in pairwise(bounds)))


def make_heads(num_heads: int, num_groups: int, dtype: torch.dtype, value_size: int = 16, scale: float = 1.0) -> Any:
    """Query, key, value and the gradient of the outcome, laid out as a model has them: [T, H, D] in memory."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_heads, 16), (num_groups, 16), (num_groups, value_size), (num_heads, value_size)]
    drawn = [torch.randn(BOUNDS[-1], *shape, generator=generator) for shape in shapes]
    drawn[0] *= scale
    heads = [item.to(dtype).transpose(0, 1).requires_grad_() for item in drawn[:3]]
    return heads, drawn[3].to(dtype)


def outcome(attend: Any, heads: list[Tensor], grad: Tensor, *case: Any) -> list[Tensor]:
    read = attend(*heads, *case)
    return [read.detach(), *torch.autograd.grad(read, heads, grad)]


@pytest.mark.parametrize(("num_heads", "num_groups", "value_size"), [(6, 2, 16), (4, 4, 16), (3, 1, 8)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case: str, num_heads: int, num_groups: int, value_size: int):
    heads, grad = make_heads(num_heads, num_groups, torch.float32, value_size)
    exact = [item.detach().double().requires_grad_() for item in heads]

    found = outcome(document_attention, heads, grad, documents(BOUNDS), CASES[case])
    expected = outcome(reference_attention, exact, grad.double(), documents(BOUNDS), CASES[case])

    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "window", "soft cap"])
def test_bfloat16_is_no_farther_from_the_truth_than_sdpa(case: str):
    scores = CASES[case]
    heads, grad = make_heads(6, 2, torch.bfloat16, scale=3.0)
    exact = [item.detach().double().requires_grad_() for item in heads]
    truth = outcome(reference_attention, exact, grad.double(), documents(BOUNDS), scores)

    def errors(found: list[Tensor]) -> Tensor:
        pairs = zip(found, truth, strict=True)
        return torch.stack([(ours.double() - theirs).norm() / theirs.norm() for ours, theirs in pairs])

    ours = errors(outcome(document_attention, heads, grad, documents(BOUNDS), scores))
    usual = (attend_by_document, BOUNDS) if scores.softcap is None else (reference_attention, documents(BOUNDS))
    theirs = errors(outcome(usual[0], heads, grad, usual[1], scores))

    assert (ours <= 1.1 * theirs).all(), (ours, theirs)
    assert ours.max() < 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_formats_go_through_sdpa(dtype: torch.dtype):
    heads, grad = make_heads(6, 2, dtype)
    exact = [item.detach().double().requires_grad_() for item in heads]

    for case in ("plain", "window", "soft cap"):
        found = outcome(document_attention, heads, grad, documents(BOUNDS), CASES[case])
        expected = outcome(reference_attention, exact, grad.double(), documents(BOUNDS), CASES[case])
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours.double(), theirs, rtol=0, atol=1e-9 if dtype is torch.float64 else 0.02)


def test_documents_do_not_touch_each_other():
    heads, grad = make_heads(6, 2, torch.float32)
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
