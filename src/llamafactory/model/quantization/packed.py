"""Linear layers whose frozen weight is packed after loading, by quantizers that transformers does not run itself.

Such a layer is an ordinary one to PEFT, with a weight of whole numbers; what it multiplies with is made for each
product and thrown away. The layer that makes the logits, and what a quantizer cannot take, stay as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ..modules import output_layer_name
from .sizes import NUM_WEIGHTS


logger = get_logger(__name__)

PACKED_BY = "packed_by"
"""Where a model notes the name of its quantizer."""
MakePacked = Callable[[nn.Linear], nn.Linear | None]
"""Packs a layer, or the weight in it; None for one that it cannot take."""


class PackedLinear(nn.Linear):
    """A linear layer with a packed weight; kinds say how it is unpacked."""

    def __init__(self, plain: nn.Linear, codes: Tensor, scales: dict[str, Tensor]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight = nn.Parameter(codes, requires_grad=False)
        setattr(self.weight, NUM_WEIGHTS, plain.weight.numel())
        self.bias = plain.bias
        for name, tensor in scales.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def is_unpacked_for_products(self) -> bool:
        """Whether `forward` multiplies by what `unpack` returns, and does nothing else."""
        return True

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as numbers [out, in]."""
        raise TypeError(f"{type(self).__name__} does not say how its weight is unpacked")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is torch's
        """Return input W^T + bias; the weight is unpacked again for the gradient instead of being kept."""
        y: Any = _Unpacked.apply(_in_autocast(input), self)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.unpack(x.dtype).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (dy @ ctx.layer.unpack(dy.dtype) if ctx.needs_input_grad[0] else None), None


def _in_autocast(x: Tensor) -> Tensor:
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def pack_linears(model: PreTrainedModel, make: MakePacked, name: str, device: torch.device) -> PreTrainedModel:
    """Pack every linear layer, one at a time, on the device where it will be used."""
    head = output_layer_name(model)
    packed = whole = 0
    for path, layer in [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]:
        if path in (head, "score"):
            continue
        replacement = make(layer.to(device))
        if replacement is None:
            whole += 1
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, replacement.train(layer.training))
        packed += 1
    if not packed:
        raise UserError(f"{name} finds no linear layer of this model that it can pack; use another quantizer.")
    logger.info("%s packed %s linear layers%s.", name, packed, f"; {whole} stay whole" if whole else "")
    vars(model)[PACKED_BY] = name
    return model.to(device)  # pyright: ignore[reportArgumentType]
