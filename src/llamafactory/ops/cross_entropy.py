"""Cross entropy as a sum over supervised tokens, without a full fp32 copy of the logits.

Shapes: B rows, T tokens, N = B x T positions, K supervised positions, V vocabulary.

Positions that carry no loss are dropped before anything is computed, and the rest is converted to fp32 one chunk
at a time; what is kept for the backward pass is the logits themselves and one number per supervised position. The
sum is not divided here: only the driver knows the number of supervised tokens in a whole optimizer step.
`cross_entropy_reference` is the same mathematics in plain PyTorch, for tests and for second derivatives.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..extras.constants import IGNORE_INDEX


CHUNK = 1024
"""Positions handled at once: 1024 x 50k vocabulary in fp32 is 200 MB."""


def shift_labels(labels_BT: Tensor) -> Tensor:
    """Return the targets of each position: the label of the next token, and none for the last one."""
    targets_BT = labels_BT.new_full(labels_BT.shape, IGNORE_INDEX)
    targets_BT[..., :-1] = labels_BT[..., 1:]
    return targets_BT


def cross_entropy(logits_NV: Tensor, targets_N: Tensor, *, label_smoothing: float = 0.0, chunk: int = CHUNK) -> Tensor:
    """Return the fp32 sum of -log p(target) over the supervised positions; leading axes are flattened.

    `label_smoothing` mixes that share of a uniform target in, as in torch.nn.functional.cross_entropy.
    """
    logits_NV = logits_NV.reshape(-1, logits_NV.shape[-1])
    targets_N = targets_N.reshape(-1)
    kept_K = (targets_N != IGNORE_INDEX).nonzero().squeeze(1)
    function = cast(Any, _CrossEntropySum)
    return function.apply(logits_NV, targets_N[kept_K], kept_K, label_smoothing, chunk)


def cross_entropy_reference(logits_NV: Tensor, targets_N: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return what `cross_entropy` returns, by way of PyTorch's own function on full fp32 logits."""
    return torch.nn.functional.cross_entropy(
        logits_NV.reshape(-1, logits_NV.shape[-1]).float(),
        targets_N.reshape(-1),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


class _CrossEntropySum(torch.autograd.Function):
    """Chunked forward, and a backward that recomputes the softmax instead of storing it."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, targets_K: Tensor, kept_K: Tensor, label_smoothing: float, chunk: int
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits_NV.device)
        normaliser_K = torch.empty(kept_K.shape, dtype=torch.float32, device=logits_NV.device)
        for start in range(0, kept_K.numel(), chunk):
            part = slice(start, start + chunk)
            logits_CV = logits_NV.index_select(0, kept_K[part]).float()
            normaliser_K[part] = logits_CV.logsumexp(dim=1)
            expected_C = logits_CV.gather(1, targets_K[part].unsqueeze(1)).squeeze(1)
            if label_smoothing:
                expected_C = (1 - label_smoothing) * expected_C + label_smoothing * logits_CV.mean(dim=1)
            total += (normaliser_K[part] - expected_C).sum()

        ctx.save_for_backward(logits_NV, targets_K, kept_K, normaliser_K)
        ctx.label_smoothing, ctx.chunk = label_smoothing, chunk
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits_NV, targets_K, kept_K, normaliser_K = cast(tuple[Tensor, ...], ctx.saved_tensors)
        label_smoothing, chunk = cast(float, ctx.label_smoothing), cast(int, ctx.chunk)
        grad_NV = torch.zeros_like(logits_NV)
        for start in range(0, kept_K.numel(), chunk):
            part = slice(start, start + chunk)
            grad_CV = logits_NV.index_select(0, kept_K[part]).float().sub_(normaliser_K[part].unsqueeze(1)).exp_()
            hits_C1 = torch.full_like(grad_CV[:, :1], label_smoothing - 1)
            grad_CV.scatter_add_(1, targets_K[part].unsqueeze(1), hits_C1)
            if label_smoothing:
                grad_CV.sub_(label_smoothing / grad_CV.shape[1])
            grad_NV.index_copy_(0, kept_K[part], grad_CV.mul_(grad).to(grad_NV.dtype))

        return grad_NV, None, None, None, None
