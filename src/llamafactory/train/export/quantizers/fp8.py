"""Writes a checkpoint in FP8 with a scale per block, as DeepSeek-V3 (arXiv 2412.19437) and Qwen have them.

Each matrix inside the layers is cut into blocks; a block is stored as float8_e4m3fn with what it was divided by beside
it (`weight_scale_inv`). Embeddings, norms and the output layer stay as they are. One file is in memory at a time.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ....extras.errors import UserError
from ....extras.logging import get_logger
from .request import QuantizeRequest


logger = get_logger(__name__)

BLOCK = 128
"""The block that GPU kernels know."""
FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SCALE = "weight_scale_inv"
INDEX = "model.safetensors.index.json"


def quantize_fp8(request: QuantizeRequest) -> None:
    """Write config and weights."""
    config: Any = AutoConfig.from_pretrained(str(request.source), local_files_only=True)
    names, kept = _linear_names(config)
    block = _block_size(request.source, names)
    where: dict[str, str] = {}
    total = 0
    for file in sorted(request.source.glob("*.safetensors")):
        tensors = _quantize_file(file, names, block)
        save_file(tensors, request.target / file.name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file.name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(set(where.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (request.target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config.quantization_config = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
        "modules_to_not_convert": kept,
    }
    config.save_pretrained(request.target)


def quantize_blocks(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix in float8 and what each block was divided by.

    Args:
        weight: Rows and columns are multiples of `block`.
    """
    rows, columns = weight.shape
    blocks = weight.float().view(rows // block, block, columns // block, block)
    scales = blocks.abs().amax(dim=(1, 3)).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
    packed = (blocks / scales[:, None, :, None]).clamp(-LARGEST, LARGEST).to(FLOAT8)
    return packed.view(rows, columns), scales


def _quantize_file(file: Path, names: set[str], block: int) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118  (no mapping)
            tensors[name] = stored.get_tensor(name)
            if name in names:
                scale = f"{name.removesuffix('weight')}{SCALE}"
                tensors[name], tensors[scale] = quantize_blocks(tensors[name], block)
    return tensors


def _linear_names(config: Any) -> tuple[set[str], list[str]]:
    """Return the matrices that are packed, and the linear layers that stay as they are."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    kept = [name for name, module in linear if module is head]
    return {f"{name}.weight" for name, module in linear if module is not head}, kept


def _block_size(source: Path, names: set[str]) -> int:
    """Return the largest block that divides every matrix: 128 but for unusual widths."""
    block = BLOCK
    for file in source.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in names & set(stored.keys()):
                block = math.gcd(block, *stored.get_slice(name).get_shape())
    if block < BLOCK:
        logger.warning(
            "FP8 blocks have %s x %s weights, for 128 divide no layer evenly; GPU kernels want 128.", block, block
        )
    if block == 1:
        raise UserError("export_quantization_method: fp8 cannot cut this model's odd widths into blocks; take bnb.")
    return block
