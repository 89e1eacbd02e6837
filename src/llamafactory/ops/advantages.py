"""What an action was worth: advantages and distances between policies, for PPO and GRPO.

Shapes: S sequences, T places for answer tokens, K tokens laid end to end, G answers to one prompt. Masks are true on
real tokens; what stands elsewhere is never read. Nothing here carries a gradient into a policy by itself.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


KlEstimator = Literal["k1", "k2", "k3"]
EPSILON = 1e-8


def generalized_advantages(
    rewards_ST: Tensor, values_ST: Tensor, mask_ST: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> Tensor:
    """Return the generalized advantage estimates [S, T] (Schulman et al. 2016, eq. 16), 0 outside of the mask.

    A_t = d_t + gamma lam A_(t+1) with d_t = r_t + gamma V_(t+1) - V_t. Behind the last real token of a sequence,
    value and advantage are 0: the answer is over. The real tokens of a sequence stand side by side.
    """
    mask = mask_ST.to(values_ST.dtype)
    rewards, values = rewards_ST * mask, values_ST * mask
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], dim=1)
    deltas = (rewards + gamma * following - values) * mask
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(len(deltas))
    for place in range(deltas.shape[1] - 1, -1, -1):
        running = (deltas[:, place] + gamma * lam * running) * mask[:, place]
        advantages[:, place] = running
    return advantages


def whiten(
    values: Tensor,
    mask: Tensor | None = None,
    *,
    shift_mean: bool = True,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """Scale the real numbers of a tensor of any shape to variance 1 and mean 0 (or to their mean); 0 elsewhere.

    With fewer than two of them, or all of them equal, there is nothing to scale by: they are only centred. `add_up`
    adds a few sums over all ranks, so that mean and variance are those of the whole.
    """
    weights = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    total, count = add_up(torch.stack([(values * weights).sum(), weights.sum()])).unbind()
    mean = total / count.clamp(min=1)
    centred = (values - mean) * weights
    variance = add_up(centred.square().sum().unsqueeze(0))[0] / (count - 1).clamp(min=1)
    scaled = centred * torch.rsqrt(variance + EPSILON)
    return scaled if shift_mean else (scaled + mean) * weights


def group_advantages(rewards_S: Tensor, group_size: int, *, scale: bool = True) -> Tensor:
    """Return how much better each answer is than the others to its prompt; answers to one prompt stand side by side.

    (r - mean) / std within the group (Shao et al. 2024, DeepSeekMath), or r - mean without the scaling, which weighs
    easy and hard prompts up (Liu et al. 2025, Dr. GRPO). A group of equal rewards teaches nothing: exactly 0.
    """
    groups_NG = rewards_S.view(-1, group_size)
    centred = groups_NG - groups_NG.mean(dim=1, keepdim=True)
    is_equal = (groups_NG == groups_NG[:, :1]).all(dim=1, keepdim=True)
    if scale and group_size > 1:
        centred = centred / groups_NG.std(dim=1, keepdim=True).clamp(min=EPSILON)
    return centred.masked_fill(is_equal, 0.0).view(-1)


def kl_estimates(logps_K: Tensor, reference_logps_K: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """Return an estimate per token of KL(policy || reference) on tokens that the policy drew (Schulman 2020).

    k1 = log(p/q) has no bias but may be negative; k2 = log(p/q)^2 / 2 has little bias and its gradient is that of the
    KL; k3 = q/p - 1 + log(p/q) has no bias and is never negative.
    """
    log_ratio = logps_K - reference_logps_K
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return torch.expm1(-log_ratio) + log_ratio


def sums_by_sequence(values_K: Tensor, sequences_K: Tensor, num_sequences: int) -> Tensor:
    """Add up the tokens of each sequence: [S]; carries the gradient."""
    return values_K.new_zeros(num_sequences).index_add(0, sequences_K, values_K)


def clipped_surrogate(log_ratios: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return -min(r A, clip(r, 1 - low, 1 + high) A) and, without gradient, where the clip decides (as 0 or 1).

    r = exp(log_ratios), of tokens or of whole sequences (Schulman et al. 2017, eq. 7; a higher upper bound as in
    Yu et al. 2025, DAPO).
    """
    ratios = log_ratios.exp()
    plain, clipped = ratios * advantages, ratios.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(plain, clipped), (clipped < plain).to(ratios.dtype).detach()


def clipped_value_loss(
    values_K: Tensor, old_values_K: Tensor, returns_K: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return max((V - R)^2, (V_clip - R)^2) / 2 per token, where V stays within `clip` of its old value, and where

    the clip decides (as 0 or 1, without gradient). As in OpenAI's baselines, and in Ziegler et al. 2019.
    """
    bounded = old_values_K + (values_K - old_values_K).clamp(-clip, clip)
    plain, clipped = (values_K - returns_K).square(), (bounded - returns_K).square()
    return 0.5 * torch.maximum(plain, clipped), (clipped > plain).to(values_K.dtype).detach()


def length_mean_log_ratios(log_ratios_K: Tensor, sequences_K: Tensor, lengths_S: Tensor) -> Tensor:
    """Return log s = the mean log ratio of each sequence's tokens [S] (Zheng et al. 2025, GSPO, eq. 7)."""
    return sums_by_sequence(log_ratios_K, sequences_K, lengths_S.numel()) / lengths_S.clamp(min=1)
