"""Adam-mini: one second moment for a block of weights instead of one for each (arXiv 2406.16793).

The blocks are those of the paper's partition for Transformers: a head of queries or keys, an output neuron of every
other matrix, a token of the embedding and of the output layer. Vectors, whose size does not matter, have Adam's own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .adam import adam_direction, decay_weight
from .recipe import AdamSettings, ExactState, Recipe, groups_of


HEADED = ("q_proj", "k_proj")
"""Layers whose output is cut into heads."""


class AdamMini(ExactState):
    """AdamW whose second moment is the mean over a block."""

    def __init__(self, groups: list[dict[str, Any]], num_blocks: dict[Tensor, int], adam: AdamSettings) -> None:
        super().__init__(groups, {})
        self.num_blocks, self.adam = num_blocks, adam

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all weights."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if weight in self.num_blocks:
                    update = self._direction(state, weight.grad, self.num_blocks[weight])
                else:
                    update = adam_direction(state, weight.grad, self.adam)
                decay_weight(weight, group)
                weight.add_(update, alpha=-group["lr"])

    def _direction(self, state: dict[str, Any], gradient: Tensor, num_blocks: int) -> Tensor:
        first, second = self.adam.betas
        if "step" not in state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(gradient)
            state["square_B"] = torch.zeros(num_blocks, device=gradient.device)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - first)
        squares_B = gradient.float().reshape(num_blocks, -1).square().mean(dim=1)
        state["square_B"].lerp_(squares_B, 1 - second)
        spread_B = (state["square_B"] / (1 - second ** state["step"])).sqrt_().add_(self.adam.eps)
        size_B1 = (1 / (1 - first ** state["step"]) / spread_B).unsqueeze(1)
        mean: Tensor = state["exp_avg"]
        return (mean.reshape(num_blocks, -1) * size_B1.to(mean.dtype)).reshape(mean.shape)


def make_adam_mini(recipe: Recipe) -> Optimizer:
    """Make Adam-mini for all weights."""
    blocks: dict[Tensor, int] = {
        weight.tensor: count_blocks(weight.name, weight.tensor, recipe.model)
        for weight in recipe.weights
        if weight.tensor.dim() > 1
    }
    return AdamMini(groups_of(recipe.weights, recipe.hf.learning_rate), blocks, recipe.adam())


def count_blocks(name: str, weight: Tensor, model: nn.Module) -> int:
    """Return into how many blocks of whole rows a matrix is cut; experts that are kept in one tensor count apart."""
    rows = weight.numel() // weight.shape[-1]
    parts = name.split(".")
    headed = next((part for part in HEADED if part in parts), None)
    if headed is None:
        return rows
    inner: Any = model
    config = inner.config.get_text_config()
    heads = int(config.num_attention_heads)
    if headed == "k_proj":
        heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return heads if rows % heads == 0 else rows  # an adapter's small matrices have no heads
