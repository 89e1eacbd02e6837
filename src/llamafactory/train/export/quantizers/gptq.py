"""GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978), by gptqmodel, which needs its own environment."""

import math
from typing import Any

import torch
from transformers import AutoConfig

from ....extras.cores import usable_cores
from ....extras.env import set_defaults
from ....extras.packages import require
from .request import QuantizeRequest


GROUP = 128
"""Weights that share a scale; smaller where 128 does not divide every width."""


def quantize_gptq(request: QuantizeRequest) -> None:
    """Quantize layer after layer, the error of each weight made up for by those after it."""
    _quantize(request, "gptq")


def quantize_awq(request: QuantizeRequest) -> None:
    """Scale up the channels that matter before rounding."""
    _quantize(request, "awq")


def _quantize(request: QuantizeRequest, method: str) -> None:
    # its pools want two workers on two cores and fail with one (gptqmodel 7.6)
    set_defaults({"GPTQMODEL_CPU_WORKERS": str(max(2, usable_cores()))})
    package: Any = require("gptqmodel", None, f"export_quantization_method: {method}")
    config = package.QuantizeConfig(bits=request.bits, group_size=_group_size(request), quant_method=method)
    model: Any = package.GPTQModel.load(str(request.source), config)
    model.quantize([_as_row(ids) for ids in request.rows], batch_size=1)
    model.save(str(request.target))


def _as_row(ids: list[int]) -> dict[str, torch.Tensor]:
    row = torch.tensor([ids])
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


def _group_size(request: QuantizeRequest) -> int:
    config: Any = AutoConfig.from_pretrained(str(request.source), local_files_only=True)
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return math.gcd(GROUP, config.hidden_size, config.intermediate_size, heads)
