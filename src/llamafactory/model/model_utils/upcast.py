"""Parts that are computed in float32 while the rest is not: norm weights, and the logits."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..request import LoadRequest


SHORT_TYPES = (torch.float16, torch.bfloat16)


def upcast_norms(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """The pass that holds norm weights in float32; it comes after all other formats are settled."""
    if not request.model_args.upcast_layernorm:
        return model
    norms: dict[str, nn.Module] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and is_norm(name) and parameter.dtype in SHORT_TYPES:
            parameter.data = parameter.data.float()
            norms[name.rpartition(".")[0]] = model.get_submodule(name.rpartition(".")[0])
    for norm in norms.values():
        norm.register_forward_hook(_as_it_came)
    return model


def is_norm(name: str) -> bool:
    """Tell the weight of a norm by its name: `input_layernorm.weight`, `ln_f.bias`, `q_norm.weight`."""
    parts = name.lower().split(".")[:-1]
    return any("norm" in part or part == "ln" or part.startswith("ln_") or part.endswith("_ln") for part in parts)


def upcast_logits(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """The pass that makes the logits float32 before anything is done with them.

    The losses here compute in float32 whatever they get; this is for whoever takes the model's own logits.
    """
    inner: Any = model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    head = inner.get_output_embeddings() if request.model_args.upcast_lmhead_output and inner.can_generate() else None
    if head is not None:
        head.register_forward_hook(_to_float)
    return model


def _as_it_came(norm: nn.Module, args: Any, output: Any) -> Any:
    """Give the next layer the format that it gave us: its weights are not float32."""
    return output.to(args[0].dtype) if args and isinstance(output, Tensor) else output


def _to_float(head: nn.Module, args: Any, output: Any) -> Any:
    is_short = isinstance(output, Tensor) and output.dtype in SHORT_TYPES
    return output.float() if is_short else output
