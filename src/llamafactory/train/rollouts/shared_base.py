"""A reward model that is an adapter on the policy's own base: the same weights in memory, used by two models.

The base of a LoRA policy is frozen, so a second model may hold the very same parameters under its own adapter and its
own score layer. Nothing is switched while the policy trains, and a checkpoint of the policy knows nothing of it.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ...hparams import ModelArguments
from ...model.adapter import load_adapter
from ...model.model_utils.valuehead import score_head_name, take_score
from ...model.readout import enable_readout


HELD = (".base_layer.", ".original_module.")
"""What PEFT puts between the name of a layer and that of its weight."""


def reward_on_shared_base(policy: nn.Module, folder: Path, model_args: ModelArguments) -> nn.Module | None:
    """Make the reward model; None where the policy does not hold its base under the usual names."""
    if not isinstance(policy, PeftModel):
        return None
    base: Any = policy.get_base_model()
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    head = score_head_name(model)
    tensors = plain_tensors(base)
    wanted = [
        name for name, _ in [*model.named_parameters(), *model.named_buffers()] if not name.startswith(f"{head}.")
    ]
    if any(name not in tensors or tensors[name].requires_grad for name in wanted):
        return None
    for name in wanted:
        put(model, name, tensors[name])
    layer = model.get_submodule(head)
    device = base.get_input_embeddings().weight.device
    layer.to_empty(device=device).to(torch.float32)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    model = take_score(model, model_args)
    enable_readout(model)
    return load_adapter(model, folder).eval()


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by the names they have without an adapter."""
    found: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        for part in HELD:
            name = name.replace(part, ".")
        found.setdefault(name, tensor)
    return found


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Let a model hold a tensor that another one holds too."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor, persistent=False)
