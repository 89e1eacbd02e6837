"""HQQ (Badri and Shaji, Half-Quadratic Quantization, 2023): 1 to 8 bits without data; the package does the rounding.

transformers 5.23 does not load HQQ any more, and the package's own layer keeps apart from torch's ways of moving and
saving. So its quantizer is used alone, in a layer of ours.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...extras.packages import require
from .packed import PackedLinear, pack_linears


if TYPE_CHECKING:
    from .choosing import QuantizerRequest

GROUP = 64
"""Weights that share a scale and a zero, along a row."""


class HqqLinear(PackedLinear):
    """A linear layer that HQQ packed."""

    def __init__(self, plain: nn.Linear, bits: int) -> None:
        codes, notes = _quantizer().quantize(
            plain.weight.detach(), nbits=bits, group_size=GROUP, axis=1, device=str(plain.weight.device)
        )
        super().__init__(plain, codes, {"scale": notes.pop("scale"), "zero": notes.pop("zero")})
        self.notes: dict[str, Any] = notes

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as numbers [out, in]; scales are applied in float32."""
        notes = {**self.notes, "scale": self.scale, "zero": self.zero, "compute_dtype": torch.float32}
        return _quantizer().dequantize(self.weight, notes).to(dtype)


def pack_hqq(model: PreTrainedModel, request: "QuantizerRequest") -> PreTrainedModel:
    """Pack all linear layers of a model that was loaded whole."""

    def make(layer: nn.Linear) -> HqqLinear | None:
        return HqqLinear(layer, request.bits) if layer.weight.numel() % GROUP == 0 else None

    return pack_linears(model, make, "HQQ", request.device)


def _quantizer() -> Any:
    return require("hqq.core.quantize", "hqq", "HQQ").Quantizer
