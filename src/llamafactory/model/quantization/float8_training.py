"""fp8: true: the products of a training step in 8-bit floats, forwards and backwards, by torchao.

Weights stay as they are and are rounded for each product, with one scale a tensor; so what is trained and saved is an
ordinary model. It pays on NVIDIA cards from compute capability 8.9 on, for models of several billion weights, and
compiled; elsewhere it is refused.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...extras.device import current_device
from ...extras.env import read_env
from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...extras.packages import require
from ...ops.float8 import MULTIPLE, multiplies_float8
from ..modules import output_layer_name


if TYPE_CHECKING:
    from ...hparams import TrainingArguments

logger = get_logger(__name__)


def check_float8(training: "TrainingArguments") -> None:
    """Refuse 8-bit products where there are none, before anything is loaded."""
    if not training.fp8:
        return
    require("torchao", "ao", "fp8: true")
    device = current_device(read_env().local_rank or 0)
    if not multiplies_float8(device):
        raise UserError(
            "fp8: true needs an NVIDIA card of compute capability 8.9 or newer (Ada, Hopper, Blackwell); remove it, "
            "and take bf16: true."
        )


def to_float8_training(model: nn.Module, *, gathers: bool = False, is_emulated: bool = False) -> int:
    """Let the linear layers of a model multiply in 8 bits; returns how many do.

    `gathers` sends shards in 8 bits under FSDP; `is_emulated` rounds alike and multiplies in float32, on any device.
    """
    float8: Any = require("torchao.float8", "ao", "fp8: true")
    inner: Any = model
    head = output_layer_name(inner.get_base_model() if hasattr(inner, "get_base_model") else inner)
    chosen: list[str] = []

    def takes(module: nn.Module, name: str) -> bool:
        is_low_rank = "lora_" in name or "oft_" in name
        is_chosen = (
            type(module) is nn.Linear
            and not is_low_rank
            and not name.endswith(head or "\n")
            and module.in_features % MULTIPLE == module.out_features % MULTIPLE == 0
        )
        if is_chosen:
            chosen.append(name)
        return is_chosen

    config = float8.Float8LinearConfig(enable_fsdp_float8_all_gather=gathers, emulate=is_emulated)
    float8.convert_to_float8_training(model, config=config, module_filter_fn=takes)
    if not chosen:
        raise UserError(f"fp8: true finds no linear layer whose widths are multiples of {MULTIPLE}; remove it.")
    return len(chosen)


def settle_float8(model: PreTrainedModel, training: "TrainingArguments") -> None:
    """Do what the fp8 keys say."""
    if not (training.fp8 and training.do_train):
        return
    num_layers = to_float8_training(model, gathers=training.fp8_enable_fsdp_float8_all_gather)
    logger.info("%s linear layers multiply in 8-bit floats.", num_layers)


def refresh_gathered_scales(model: torch.nn.Module) -> None:
    """Work out the scales of all sharded weights in one exchange, after an optimizer step; else each asks alone."""
    require("torchao.float8", "ao", "fp8: true").precompute_float8_dynamic_scale_for_fsdp(model)
