"""The quantization configs of transformers, made from our arguments."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig, CompressedTensorsConfig, EetqConfig, FineGrainedFP8Config, TorchAoConfig
from transformers.utils.quantization_config import Mxfp4Config


if TYPE_CHECKING:
    from .choosing import QuantizerRequest

WHOLE = {"compressed-tensors": CompressedTensorsConfig, "fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}


def bnb_config(request: "QuantizerRequest") -> Any:
    """8 bits with vectors of scales (arXiv 2208.07339), or 4 bits of QLoRA (arXiv 2305.14314).

    Sharding joins weights of one number format, so that packed ones then name the one of the weights beside them.
    """
    if request.stored:
        return None
    if request.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=request.kind,
        bnb_4bit_use_double_quant=request.is_double,
        bnb_4bit_compute_dtype=request.compute_dtype,
        bnb_4bit_quant_storage=request.compute_dtype if request.is_sharded else torch.uint8,
    )


def torchao_config(request: "QuantizerRequest") -> Any:
    """The same weights as torchao.py packs, for a checkpoint that says so."""
    if request.stored:
        return None
    from .torchao import weight_only_config

    return TorchAoConfig(weight_only_config(request.bits))


def eetq_config(request: "QuantizerRequest") -> Any:
    """8-bit weights for NVIDIA cards."""
    return None if request.stored else EetqConfig("int8")


def stored_config(request: "QuantizerRequest") -> Any:
    """Leave everything to what the checkpoint says about itself."""
    return None


def whole_config(request: "QuantizerRequest") -> Any:
    """Turn the weights into plain ones while loading: training and merging need them."""
    return WHOLE[str(request.stored["quant_method"])](dequantize=True)
