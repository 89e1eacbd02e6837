"""Cross entropy of chosen tokens as a sum, straight from hidden states; [K, V] never exists.

Shapes: K positions, C positions of one chunk or block, D hidden, V vocabulary.

The gradient of a sum is known up to one number, so it is made chunk by chunk in the forward pass, while the logits of
the chunk are at hand (the idea of Liger Kernel, arXiv:2410.10989, section 3.2); the backward pass multiplies it by
that number. The sum is not divided here: only the driver knows the number of supervised tokens in a whole step.
`linear_cross_entropy_reference` is the same mathematics in plain PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .head import GradientSum, Memory, OutputHead, Projection, eager_logits, memory_for, prepare, without_autocast


Reweight = Callable[[Tensor, Tensor], Tensor]
"""(all log-probabilities [C, V], those of the targets [C]) -> a factor for each token's loss [C]; no gradient."""


class Anchor(NamedTuple):
    """A distribution to stay close to, as the hidden states and the head of a frozen model."""

    hidden_KD: Tensor
    head: OutputHead
    strength: float
    """Factor of KL(model || anchor), which is added to the loss of each token."""


class CrossEntropy(NamedTuple):
    """Sums over the positions, in float32."""

    total: Tensor
    """The loss; carries the gradient."""
    num_correct: Tensor | None
    """Positions at which the likeliest token is the target; counted when asked for, detached."""


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """The loss of a token: w {r [-(1 - e) log p(target) - e mean_v log p(v) + z logsumexp(logits)^2] + k KL(p || q)}.

    w is the weight that the caller gives to the token.
    """

    label_smoothing: float = 0.0
    """e, the share of a uniform target, as in torch.nn.functional.cross_entropy."""
    z_loss: float = 0.0
    """z, which keeps the normaliser near 1 (Chowdhery et al. 2022, arXiv:2204.02311, section 5)."""
    reweight: Reweight | None = None
    """r, a factor that depends on the model's own distribution."""
    anchor: Anchor | None = None
    """q and k."""
    counts_hits: bool = False
    """Also count the tokens that are predicted right."""


PLAIN = TokenLoss()


def linear_cross_entropy(
    hidden_KD: Tensor,
    head: OutputHead,
    targets_K: Tensor,
    *,
    weights_K: Tensor | None = None,
    loss: TokenLoss = PLAIN,
    memory: Memory | None = None,
) -> CrossEntropy:
    """Return the sum of the losses of all positions, each times its weight.

    The gradient reaches the hidden states, and weight and bias of the head where they learn; it can be asked for
    once. Where nothing learns, no gradient is computed.
    """
    projection, hidden_KD = prepare(head, hidden_KD)
    anchor = None if loss.anchor is None else prepare(loss.anchor.head, loss.anchor.hidden_KD.detach())
    learns = torch.is_grad_enabled()  # what is known of inputs alone says that a weight learns, in evaluation too
    work = _Work(projection, targets_K, weights_K, loss, anchor, memory or memory_for(hidden_KD.device), learns)
    total, num_correct = cast(Any, _CrossEntropySum).apply(hidden_KD, head.weight_VD, head.bias_V, work)
    return CrossEntropy(total, num_correct if loss.counts_hits else None)


def linear_cross_entropy_reference(
    hidden_KD: Tensor,
    head: OutputHead,
    targets_K: Tensor,
    *,
    weights_K: Tensor | None = None,
    loss: TokenLoss = PLAIN,
) -> CrossEntropy:
    """Return what `linear_cross_entropy` returns, with all logits at once."""
    logits_KV = eager_logits(hidden_KD, head)
    all_KV = logits_KV.log_softmax(dim=-1)
    expected_K = all_KV.gather(1, targets_K.unsqueeze(1)).squeeze(1)
    losses_K = -(1 - loss.label_smoothing) * expected_K - loss.label_smoothing * all_KV.mean(dim=-1)
    losses_K = losses_K + loss.z_loss * logits_KV.logsumexp(dim=-1).square()
    if loss.reweight is not None:
        losses_K = losses_K * loss.reweight(all_KV.detach(), expected_K.detach())
    if loss.anchor is not None:
        anchor_KV = eager_logits(loss.anchor.hidden_KD, loss.anchor.head).detach().log_softmax(dim=-1)
        losses_K = losses_K + loss.anchor.strength * (all_KV.exp() * (all_KV - anchor_KV)).sum(dim=-1)
    if weights_K is not None:
        losses_K = losses_K * weights_K
    return CrossEntropy(losses_K.sum(), (logits_KV.argmax(dim=-1) == targets_K).sum())


class _Work(NamedTuple):
    """One call, as the blocks need it."""

    projection: Projection
    targets_K: Tensor
    weights_K: Tensor | None
    loss: TokenLoss
    anchor: tuple[Projection, Tensor] | None
    memory: Memory
    learns: bool

    def anchor_products(self, part: slice) -> Tensor | None:
        """Return the products of the anchor's head for a chunk."""
        return None if self.anchor is None else self.anchor[0].products(self.anchor[1][part])


class _CrossEntropySum(torch.autograd.Function):
    """All the work is done in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, weight_VD: Tensor | None, bias_V: Tensor | None, work: _Work
    ) -> tuple[Tensor, Tensor]:
        needs = [work.learns and is_needed for is_needed in cast(tuple[bool, ...], ctx.needs_input_grad)]
        learns, projection, device = any(needs), work.projection, hidden_KD.device
        total = torch.zeros((), dtype=torch.float32, device=device)
        num_correct = torch.zeros((), dtype=torch.int64, device=device)
        grad_KD = torch.zeros_like(hidden_KD) if needs[0] else None
        sums = GradientSum(weight_VD if needs[1] else None, bias_V if needs[2] else None)
        with without_autocast(device):
            for part in projection.chunks(work.targets_K.numel(), work.memory):
                products_CV, anchor_CV = projection.products(hidden_KD[part]), work.anchor_products(part)
                pulls_CV = torch.empty_like(products_CV) if projection.weight_VD is None else products_CV
                for block, place in projection.blocks(part, work.memory):
                    found = _Block(work, place, products_CV[block], None if anchor_CV is None else anchor_CV[block])
                    share, hits = found.measure()
                    total += share
                    num_correct += hits
                    if learns:  # over the products that it was made of, which nobody needs any more
                        pulls_CV[block] = found.pull()
                if grad_KD is not None:
                    grad_KD[part] = projection.hidden_gradient(pulls_CV)
                if learns:
                    sums.add(pulls_CV, hidden_KD[part])
        ctx.gradients = (grad_KD, *sums.read())
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = cast(tuple[Tensor | None, ...], ctx.gradients)
        ctx.gradients = None  # they are scaled in place
        return *(None if gradient is None else gradient.mul_(grad) for gradient in gradients), None


class _Block:
    """The float32 work on a few positions: their losses, then the gradient of what the head made of them."""

    def __init__(self, work: _Work, place: slice, products_CV: Tensor, anchor_CV: Tensor | None) -> None:
        self.work, self.place = work, place
        self.targets_C1 = work.targets_K[place].unsqueeze(1)
        self.logits_CV = work.projection.logits(products_CV)
        self.all_CV = self.logits_CV.log_softmax(dim=1)
        self.expected_C = self.all_CV.gather(1, self.targets_C1).squeeze(1)
        self.factors_C: Tensor | None = None
        if work.loss.reweight is not None:
            self.factors_C = work.loss.reweight(self.all_CV, self.expected_C)
        self.ratios_CV: Tensor | None = None
        if anchor_CV is not None and work.anchor is not None:
            self.ratios_CV = self.all_CV - work.anchor[0].logits(anchor_CV).log_softmax(dim=1)

    def measure(self) -> tuple[Tensor, Tensor | int]:
        """Return the sum of the losses, and the number of hits."""
        work, loss = self.work, self.work.loss
        losses_C = -(1 - loss.label_smoothing) * self.expected_C
        if loss.label_smoothing:
            losses_C -= loss.label_smoothing * self.all_CV.mean(dim=1)
        if loss.z_loss:
            losses_C += loss.z_loss * self._normalisers().square()
        if self.factors_C is not None:
            losses_C *= self.factors_C
        if self.ratios_CV is not None and loss.anchor is not None:
            self.divergences_C = (self.all_CV.exp() * self.ratios_CV).sum(dim=1)
            losses_C += loss.anchor.strength * self.divergences_C
        if work.weights_K is not None:
            losses_C *= work.weights_K[self.place]
        hits = (self.all_CV.argmax(dim=1) == self.targets_C1.squeeze(1)).sum() if loss.counts_hits else 0
        return losses_C.sum(), hits

    def pull(self) -> Tensor:
        """Return the gradient of the products [C, V]; what was measured is used up."""
        work, loss = self.work, self.work.loss
        normalisers_C = self._normalisers() if loss.z_loss else None
        pull_CV = self.all_CV.exp_()
        drift_CV: Tensor | None = None
        if self.ratios_CV is not None and loss.anchor is not None:
            drift_CV = self.ratios_CV.sub_(self.divergences_C.unsqueeze(1)).mul_(pull_CV).mul_(loss.anchor.strength)
        if normalisers_C is not None:
            pull_CV.mul_(normalisers_C.mul_(2 * loss.z_loss).add_(1.0).unsqueeze(1))
        pull_CV.scatter_add_(1, self.targets_C1, pull_CV.new_full(self.targets_C1.shape, loss.label_smoothing - 1))
        if loss.label_smoothing:
            pull_CV.sub_(loss.label_smoothing / pull_CV.shape[1])
        if self.factors_C is not None:
            pull_CV.mul_(self.factors_C.unsqueeze(1))
        if drift_CV is not None:
            pull_CV.add_(drift_CV)
        if work.weights_K is not None:
            pull_CV.mul_(work.weights_K[self.place].unsqueeze(1))
        return work.projection.pull_back(pull_CV, self.logits_CV)

    def _normalisers(self) -> Tensor:
        return self.logits_CV.gather(1, self.targets_C1).squeeze(1) - self.expected_C
