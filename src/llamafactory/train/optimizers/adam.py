"""Adam's update, kept apart so that the optimizers built on it share one form."""

from typing import Any

import torch
from torch import Tensor

from .recipe import AdamSettings


def adam_direction(state: dict[str, Any], gradient: Tensor, settings: AdamSettings) -> Tensor:
    """Take a gradient into the two averages and return m / (sqrt(v) + eps), both freed of their bias.

    Kingma and Ba, arXiv 1412.6980. `state` gets `step`, `exp_avg` and `exp_avg_sq`, in the gradient's format.
    """
    if "step" not in state:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    state["step"] += 1
    first, second = settings.betas
    mean: Tensor = state["exp_avg"].lerp_(gradient, 1 - first)
    square: Tensor = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    spread = (square / (1 - second ** state["step"])).sqrt_().add_(settings.eps)
    return (mean / (1 - first ** state["step"])).div_(spread)


def decay_weight(weight: Tensor, group: dict[str, Any]) -> None:
    """Pull a weight towards zero, apart from its gradient (AdamW, arXiv 1711.05101)."""
    if group["weight_decay"]:
        weight.mul_(1 - group["lr"] * group["weight_decay"])
