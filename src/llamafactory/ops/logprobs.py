"""Log-probabilities of chosen tokens, straight from hidden states. Shapes: K positions, D hidden, V vocabulary.

[K, V] exists in the compute format at most, and only where it is small enough to be kept for the backward pass;
otherwise it is made again there, chunk by chunk. float32 is a few positions wide.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .head import GradientSum, Memory, OutputHead, Projection, eager_logits, memory_for, prepare, without_autocast


class LogProbs(NamedTuple):
    """One number per position, in float32."""

    logps_K: Tensor
    """log p(target), with gradient."""
    entropies_K: Tensor | None
    """-sum p log p over the vocabulary in nats; detached."""
    logit_means_K: Tensor
    """Mean logit over the vocabulary; detached."""


def linear_log_probs(
    hidden_KD: Tensor,
    head: OutputHead,
    targets_K: Tensor,
    *,
    with_entropy: bool = False,
    memory: Memory | None = None,
) -> LogProbs:
    """Return log p(target) of each position; `linear_log_probs_reference` is the same in plain PyTorch.

    The gradient reaches the hidden states, and weight and bias of the head where they learn.
    """
    projection, hidden_KD = prepare(head, hidden_KD)
    memory = memory or memory_for(hidden_KD.device)
    work = _Work(projection, targets_K, with_entropy, memory, torch.is_grad_enabled())
    found = cast(Any, _LogProbs).apply(hidden_KD, head.weight_VD, head.bias_V, work)
    logps_K, entropies_K, means_K = cast(tuple[Tensor, Tensor, Tensor], found)
    return LogProbs(logps_K, entropies_K if with_entropy else None, means_K)


def linear_log_probs_reference(hidden_KD: Tensor, head: OutputHead, targets_K: Tensor) -> LogProbs:
    """Return what `linear_log_probs` returns, with all logits at once."""
    logits_KV = eager_logits(hidden_KD, head)
    logps_KV = logits_KV.log_softmax(dim=-1)
    entropies_K = -(logps_KV.exp() * logps_KV).sum(dim=-1).detach()
    logps_K = logps_KV.gather(1, targets_K.unsqueeze(1)).squeeze(1)
    return LogProbs(logps_K, entropies_K, logits_KV.mean(dim=-1).detach())


class _Work(NamedTuple):
    """One call."""

    projection: Projection
    targets_K: Tensor
    with_entropy: bool
    memory: Memory
    learns: bool


class _LogProbs(torch.autograd.Function):
    """Keeps one number per position, and the products where they are small."""

    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, weight_VD: Tensor | None, bias_V: Tensor | None, work: _Work
    ) -> tuple[Tensor, Tensor, Tensor]:
        projection, targets_K, memory = work.projection, work.targets_K, work.memory
        num, device = targets_K.numel(), hidden_KD.device
        keeps = work.learns and any(ctx.needs_input_grad) and num * projection.row_bytes <= memory.kept
        kept: list[Tensor] = []
        logps_K, entropies_K, means_K, lse_K = (torch.zeros(num, device=device) for _ in range(4))
        with without_autocast(device):
            for part in projection.chunks(num, memory):
                products_CV = projection.products(hidden_KD[part])
                if keeps and projection.weight_VD is not None:
                    kept.append(products_CV)
                for block, place in projection.blocks(part, memory):
                    logits_CV = projection.logits(products_CV[block])
                    means_K[place] = logits_CV.mean(dim=1)
                    targets_C1 = targets_K[place].unsqueeze(1)
                    expected_C = logits_CV.gather(1, targets_C1).squeeze(1)
                    all_CV = logits_CV.log_softmax(dim=1)
                    logps_K[place] = all_CV.gather(1, targets_C1).squeeze(1)
                    lse_K[place] = expected_C - logps_K[place]
                    if work.with_entropy:
                        entropies_K[place] = all_CV.exp().mul_(all_CV).sum(dim=1).neg_()
        ctx.save_for_backward(hidden_KD, targets_K, lse_K, *kept)
        ctx.work = work
        ctx.learned = [tensor.detach() if tensor is not None else None for tensor in (weight_VD, bias_V)]
        ctx.mark_non_differentiable(entropies_K, means_K)
        return logps_K, entropies_K, means_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_K: Tensor, *others: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_KD, targets_K, lse_K, *kept = cast(tuple[Tensor, ...], ctx.saved_tensors)
        projection, memory = cast(_Work, ctx.work).projection, cast(_Work, ctx.work).memory
        needs = cast(tuple[bool, ...], ctx.needs_input_grad)
        grad_KD = torch.zeros_like(hidden_KD) if needs[0] else None
        learned = [tensor if is_needed else None for tensor, is_needed in zip(ctx.learned, needs[1:3], strict=True)]
        sums = GradientSum(*learned)
        with without_autocast(hidden_KD.device):
            for index, part in enumerate(projection.chunks(targets_K.numel(), memory)):
                products_CV = kept[index] if kept else projection.products(hidden_KD[part])
                grad_CV = torch.empty_like(products_CV)
                for block, place in projection.blocks(part, memory):
                    logits_CV = projection.logits(products_CV[block])
                    pull_CV = (logits_CV - lse_K[place].unsqueeze(1)).exp_()
                    targets_C1 = targets_K[place].unsqueeze(1)
                    pull_CV.scatter_add_(1, targets_C1, pull_CV.new_full(targets_C1.shape, -1.0))
                    pull_CV.mul_(grad_K[place].neg().unsqueeze(1))
                    grad_CV[block] = projection.pull_back(pull_CV, logits_CV)
                if grad_KD is not None:
                    grad_KD[part] = projection.hidden_gradient(grad_CV)
                sums.add(grad_CV, hidden_KD[part])
        return grad_KD, *sums.read(), None
