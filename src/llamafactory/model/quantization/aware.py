"""Training that feels the rounding to come (QAT): weights are rounded in each forward pass, and learn as if not.

What is trained and saved are ordinary weights, which lose next to nothing when they are packed with torchao as many
bits afterwards (quantization_method: torchao). For LoRA the sum of weight and update is rounded, because that is what
an export will be packed from; torchao's own layer would round the weight alone.
"""

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...extras.packages import require
from ..fused.replacement import Replacement, put
from ..modules import output_layer_name
from ..request import LoadRequest
from .torchao import GROUP, INT4, weight_only_config


logger = get_logger(__name__)


class RoundedSum(Replacement):
    """Stands for a LoRA layer; rounds weight plus update, and hands the gradient through."""

    def __init__(self, module: lora.Linear, rounding: nn.Module) -> None:
        super().__init__(module)
        self.rounding = rounding

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self.module
        if args or kwargs or layer.disable_adapters or layer.merged:
            return self.own(x, *args, **kwargs)
        base = layer.get_base_layer()
        whole = base.weight.float()
        for name in layer.active_adapters:
            whole = whole + layer.scaling[name] * (layer.lora_B[name].weight @ layer.lora_A[name].weight).float()
        weight = self.rounding(whole).to(base.weight.dtype)
        return torch.nn.functional.linear(x.to(weight.dtype), weight, base.bias)


def prepare_rounding(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """The pass that puts rounding into a training model, where `qat_bits` asks for it."""
    bits = request.finetuning_args.qat_bits
    if bits is None or not request.is_trainable:
        return model
    adapted = [module for module in model.modules() if isinstance(module, lora.Linear)]
    num_layers = _round_sums(adapted, bits) if adapted else _round_weights(model, bits)
    if not num_layers:
        raise UserError(f"qat_bits: {bits} finds no linear layer whose width is a multiple of {GROUP}; remove it.")
    logger.info("%s linear layers are trained for %s bits of torchao.", num_layers, bits)
    return model


def _round_sums(layers: list[lora.Linear], bits: int) -> int:
    qat: Any = require("torchao.quantization.qat", "ao", "qat_bits")
    fitting = [layer for layer in layers if type(layer.get_base_layer()) is nn.Linear and _fits(layer, bits)]
    for layer in fitting:
        put(RoundedSum(layer, qat.IntxFakeQuantizer(_scheme(bits))))
    return len(fitting)


def _round_weights(model: PreTrainedModel, bits: int) -> int:
    ao: Any = require("torchao.quantization", "ao", "qat_bits")
    qat: Any = require("torchao.quantization.qat", "ao", "qat_bits")
    head = output_layer_name(model)
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name != head and _fits(module, bits)
    ]
    if names:
        prepare = qat.QATConfig(weight_only_config(bits), step="prepare")
        ao.quantize_(model, prepare, filter_fn=lambda module, name: name in names)
    return len(names)


def _fits(layer: Any, bits: int) -> bool:
    return bits == 8 or layer.in_features % GROUP == 0


def _scheme(bits: int) -> Any:
    """Return torchao's name for how `weight_only_config` rounds."""
    qat: Any = require("torchao.quantization.qat", "ao", "qat_bits")
    if bits == 8:
        return qat.IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
    return qat.IntxFakeQuantizeConfig(INT4, group_size=GROUP, is_symmetric=True)
