"""torchao: whole-number weights with a scale for each row (8 bits) or each group of a row (4 bits).

Packed here and not by transformers, whose trainer refuses adapters on torchao's 4 bits although they learn.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...extras.packages import require
from .packed import pack_linears


if TYPE_CHECKING:
    from .choosing import QuantizerRequest

GROUP = 32
"""Weights that share a scale in 4 bits."""
INT4: Any = vars(torch)["int4"]  # torch has it, its stubs do not


def pack_torchao(model: PreTrainedModel, request: "QuantizerRequest") -> PreTrainedModel:
    """Pack all linear layers of a model that was loaded whole."""
    ao: Any = require("torchao.quantization", "ao", "torchao")
    config = weight_only_config(request.bits)

    def make(layer: nn.Linear) -> nn.Linear | None:
        if request.bits == 4 and layer.in_features % GROUP:
            return None
        ao.quantize_(layer, config)
        layer.weight.requires_grad_(False)
        return layer

    return pack_linears(model, make, "torchao", request.device)


def weight_only_config(bits: int) -> Any:
    """Return torchao's name for 8 or 4 bits."""
    ao: Any = require("torchao.quantization", "ao", "torchao")
    if bits == 8:
        return ao.IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=ao.granularity.PerAxis(0))
    return ao.IntxWeightOnlyConfig(weight_dtype=INT4, granularity=ao.granularity.PerGroup(GROUP))
