"""Frozen weights in few bits below an adapter, as ops/lora.py multiplies with them.

Covered are the layers that make numbers of the whole weight for each product: bitsandbytes in 4 bits, and those of
model/quantization (HQQ, FP8 where products are not in 8 bits). Others round their input as well, or have a product of
their own, and keep it.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...extras.device import current_device
from ...extras.packages import require
from ...ops.float8 import multiplies_float8
from ...ops.lora import PackedWeight
from ..quantization.packed import PackedLinear
from ..quantization.sizes import Packing


@dataclass(frozen=True)
class UnpackedWeight:
    """The weight of a layer of ours, read at each product."""

    layer: PackedLinear

    @property
    def shape(self) -> torch.Size:
        """Width out, width in."""
        return torch.Size((self.layer.out_features, self.layer.in_features))

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.layer.weight.device

    def takes(self, dtype: torch.dtype) -> bool:
        """Any format: the layer has none of its own."""
        return True

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as numbers."""
        return self.layer.unpack(dtype)


@dataclass(frozen=True)
class Bnb4bitWeight:
    """The weight of a `bitsandbytes.nn.Linear4bit`, read at each product."""

    layer: Any

    @property
    def shape(self) -> torch.Size:
        """Width out, width in."""
        return torch.Size(self.layer.weight.quant_state.shape)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.layer.weight.device

    def takes(self, dtype: torch.dtype) -> bool:
        """Only the format that the layer brings its input to."""
        return self.layer.compute_dtype in (None, dtype)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as numbers, rounded once: to the format of the product, as the layer itself does."""
        functional = require("bitsandbytes", "bnb", "QLoRA").functional
        return functional.dequantize_4bit(self.layer.weight.data, _with_dtype(self.layer.weight.quant_state, dtype))


def packed_weight(layer: nn.Module) -> PackedWeight | None:
    """Return what a layer multiplies with; None where it is not among those covered."""
    if isinstance(layer, PackedLinear):
        return UnpackedWeight(layer) if layer.is_unpacked_for_products else None
    if not _is_bnb_4bit(layer):
        return None
    state: Any = getattr(layer.weight, "quant_state", None)
    is_as_trained = state is not None and not getattr(state, "packing_format_for_cpu", False)
    return Bnb4bitWeight(layer) if is_as_trained else None


def covers(packing: Packing) -> bool:
    """Whether layers that are going to be packed will be among those covered."""
    if packing.method == "fp8":
        return not multiplies_float8(current_device())
    return packing.method == "hqq" or (packing.method, packing.bits) == ("bnb", 4)


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let layers that multiply in a format of their own multiply in this one, on the way back too."""
    for module in model.modules():
        if isinstance(packed_weight(module), Bnb4bitWeight):
            layer: Any = module
            layer.compute_dtype, layer.weight.quant_state = dtype, _with_dtype(layer.weight.quant_state, dtype)


def _with_dtype(state: Any, dtype: torch.dtype) -> Any:
    """Return the notes of a packed weight for unpacking in a format; those that the layer holds stay."""
    changed = copy.copy(state)
    changed.dtype = dtype
    return changed


def _is_bnb_4bit(layer: nn.Module) -> bool:
    kind = type(layer)
    return kind.__name__ in ("Linear4bit", "LinearNF4", "LinearFP4") and kind.__module__.startswith("bitsandbytes.")
