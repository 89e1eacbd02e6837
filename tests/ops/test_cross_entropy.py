"""The chunked sum against PyTorch's own cross entropy, value and gradient."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.ops.cross_entropy import cross_entropy, cross_entropy_reference, shift_labels


def made_batch(share_ignored: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 11, 37, generator=generator).mul(3).to(dtype)
    targets = torch.randint(0, 37, (3, 11), generator=generator)
    targets[torch.rand(3, 11, generator=generator) < share_ignored] = IGNORE_INDEX
    return logits, targets


def value_and_gradient(function, logits: Tensor, targets: Tensor, **options: float) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    total = function(logits, targets, **options)
    (total / 7).backward()
    return total.detach(), logits.grad


@pytest.mark.parametrize("share_ignored", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_sum_and_gradient_equal_the_reference(share_ignored: float, label_smoothing: float, chunk: int):
    logits, targets = made_batch(share_ignored)
    expected = value_and_gradient(cross_entropy_reference, logits, targets, label_smoothing=label_smoothing)
    got = value_and_gradient(cross_entropy, logits, targets, label_smoothing=label_smoothing, chunk=chunk)
    assert_close(got[0], expected[0], rtol=1e-6, atol=1e-5)
    assert_close(got[1], expected[1], rtol=1e-5, atol=1e-7)


def test_bf16_logits_are_summed_in_fp32_and_get_bf16_gradients():
    logits, targets = made_batch(0.3, torch.bfloat16)
    expected = value_and_gradient(cross_entropy_reference, logits, targets)
    got = value_and_gradient(cross_entropy, logits, targets, chunk=5)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == torch.bfloat16
    assert_close(got[0], expected[0], rtol=1e-6, atol=1e-5)
    assert_close(got[1], expected[1], rtol=1e-2, atol=1e-4)


def test_closed_form_on_three_tokens():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    targets = torch.tensor([0, 0, IGNORE_INDEX])
    assert_close(cross_entropy(logits, targets), torch.tensor(0.6931472 + 0.1269280))


def test_shifted_labels_name_the_next_token():
    labels = torch.tensor([[IGNORE_INDEX, 5, 6], [1, 2, IGNORE_INDEX]])
    expected = torch.tensor([[5, 6, IGNORE_INDEX], [2, IGNORE_INDEX, IGNORE_INDEX]])
    assert_close(shift_labels(labels), expected)
