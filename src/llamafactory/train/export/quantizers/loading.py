"""Quantizers that work while transformers loads a model: bitsandbytes and torchao."""

from typing import Any

from transformers import AutoModelForCausalLM

from ....extras.packages import require
from ....model.quantization.choosing import QuantizerRequest
from ....model.quantization.configs import bnb_config, torchao_config
from .request import QuantizeRequest


def quantize_bnb(request: QuantizeRequest) -> None:
    """8 bits with vectors of scales, or the 4 bits of QLoRA."""
    require("bitsandbytes", "bnb", "export_quantization_method: bnb")
    _load_and_save(request, bnb_config(_asked(request)))


def quantize_torchao(request: QuantizeRequest) -> None:
    """Whole-number weights with a scale per row (8 bits) or per group (4 bits)."""
    require("torchao", "ao", "export_quantization_method: torchao")
    _load_and_save(request, torchao_config(_asked(request)))


def _asked(request: QuantizeRequest) -> QuantizerRequest:
    return QuantizerRequest(request.bits, "nf4", True, request.dtype, {})


def _load_and_save(request: QuantizeRequest, config: Any) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(request.source), quantization_config=config, dtype=request.dtype, local_files_only=True, device_map="cpu"
    )
    model.save_pretrained(request.target, max_shard_size=request.shard_size)
