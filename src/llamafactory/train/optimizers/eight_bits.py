"""A linear layer that learns although its weight is kept in 8 bits only (Q-GaLore, arXiv 2407.08296)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .grid import Grid, from_grid, to_grid


BITS = 8


class EightBitLinear(nn.Linear):
    """A linear layer with its weight on a grid.

    `weight` takes no memory: it is one zero that pretends to have the weight's shape, so that gradients, clipping and
    hooks find what they always find. What the layer multiplies with, and what is saved, comes from the grid.
    """

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias = plain.bias
        self.weight = nn.Parameter(_zero_like(plain.weight), requires_grad=plain.weight.requires_grad)
        for name, tensor in to_grid(plain.weight.detach(), BITS)._asdict().items():
            self.register_buffer(name, tensor, persistent=False)

    def grid(self) -> Grid:
        """Return the weight as it is kept."""
        return Grid(self.get_buffer("codes"), self.get_buffer("low"), self.get_buffer("step"))

    def put(self, grid: Grid) -> None:
        """Replace the weight."""
        for name, tensor in grid._asdict().items():
            self.get_buffer(name).copy_(tensor)

    def whole(self) -> Tensor:
        """Return the weight in float32."""
        return from_grid(self.grid(), self.weight.shape, BITS)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is torch's
        """Return input W^T + bias."""
        device = input.device.type
        x = input.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else input
        y: Any = _TrainedProduct.apply(x, self.weight, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        self.weight.data = _zero_like(self.weight)
        return moved

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.whole().to(self.weight.dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}weight")
        if saved is not None:
            self.put(to_grid(saved, BITS))
            state_dict = {**state_dict, f"{prefix}weight": self.weight.detach()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.weight.data = _zero_like(self.weight)


def to_eight_bits(model: nn.Module, weights: set[nn.Parameter]) -> dict[Tensor, EightBitLinear]:
    """Put these weights of linear layers on grids; returns the new layers by the weights that they had."""
    layers: dict[Tensor, EightBitLinear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight in weights:
                layers[child.weight] = layer = EightBitLinear(child).train(child.training)
                setattr(parent, name, layer)
    return layers


def _zero_like(weight: Tensor) -> Tensor:
    return torch.zeros((), dtype=weight.dtype, device=weight.device).expand(weight.shape)


class _TrainedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: EightBitLinear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return x @ layer.whole().to(x.dtype).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        dx = dy @ ctx.layer.whole().to(dy.dtype) if ctx.needs_input_grad[0] else None
        dw = dy.flatten(0, -2).t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return dx, dw, None
