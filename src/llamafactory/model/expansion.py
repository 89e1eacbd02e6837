"""LLaMA Pro (arxiv.org/abs/2401.02415): a model gets new blocks that change nothing yet, and only these are trained.

A new block is a copy of the one before it whose two output projections are zero, so it adds nothing to the stream.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..extras.errors import UserError
from .freeze import layer_stack


OUTPUTS = frozenset(
    {"o_proj", "out_proj", "down_proj", "c_proj", "wo", "w2", "fc2", "fc_out", "dense_4h_to_h", "dense"}
)
"""What the matrices are called whose products are added to the stream."""


def new_layers(model: PreTrainedModel, num_new: int) -> list[int]:
    """Return the numbers of the new blocks in an expanded model: the last one of each of `num_new` equal groups."""
    _, total = layer_stack(model)
    if num_new < 1 or total % num_new or total == num_new:
        raise UserError(
            f"use_llama_pro: true needs freeze_trainable_layers to be the number of new blocks, which divides the "
            f"{total} layers of this model, not {num_new}."
        )
    size = total // num_new
    return [size * (group + 1) - 1 for group in range(num_new)]


def expand_blocks(model: PreTrainedModel, num_new: int) -> None:
    """Put a silent copy behind each of `num_new` equal groups of blocks, in place."""
    prefix, total = layer_stack(model)
    if num_new < 1 or total % num_new:
        raise UserError(
            f"num_expand {num_new} does not divide the {total} layers of this model; choose another number."
        )
    size = total // num_new
    layers = model.get_submodule(prefix.rstrip("."))
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"The layers of {type(model).__name__} are no plain list, so none can be put between them.")
    stretched: list[nn.Module] = []
    sources: list[int] = []
    for index, layer in enumerate(layers):
        stretched.append(layer)
        sources.append(index)
        if (index + 1) % size == 0:
            stretched.append(_silent_copy(layer))
            sources.append(index)
    expanded = nn.ModuleList(stretched)
    model.set_submodule(prefix.rstrip("."), expanded)
    _renumber(expanded)
    _stretch_config(model.config.get_text_config(), sources)


def _silent_copy(layer: nn.Module) -> nn.Module:
    silent = copy.deepcopy(layer)
    outputs = list(_output_tensors(silent))
    if len(outputs) < 2:
        raise UserError(
            f"The output projections of {type(layer).__name__} are not known: {', '.join(sorted(OUTPUTS))}."
        )
    for tensor in outputs:
        nn.init.zeros_(tensor)
    return silent


def _output_tensors(layer: nn.Module) -> Iterator[Tensor]:
    for name, parameter in layer.named_parameters():
        parts = name.split(".")
        is_output = parts[-1] in OUTPUTS or (
            len(parts) > 1 and parts[-2] in OUTPUTS and parts[-1] in ("weight", "bias")
        )
        if is_output:
            yield parameter


def _renumber(layers: nn.ModuleList) -> None:
    """Attention finds its place in the key-value cache by its number."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(vars(module).get("layer_idx"), int):
                vars(module)["layer_idx"] = index


def _stretch_config(config: Any, sources: list[int]) -> None:
    """Tell the config of the new depth; lists with a value for each layer get those of the copied ones."""
    old = config.num_hidden_layers
    for name, value in vars(config).items():
        if (
            isinstance(value, list)
            and len(value) == old
            and name.endswith(("layer_types", "_layers", "layers_block_type"))
        ):
            setattr(config, name, [value[source] for source in sources])
    config.num_hidden_layers = len(sources)


def largest_change(one: PreTrainedModel, two: PreTrainedModel, num_tokens: int = 16) -> float:
    """Return how far the logits of two models are apart on a row of tokens, as a share of the largest."""
    ids = torch.arange(num_tokens, device=one.device)[None] + 1
    with torch.no_grad():
        first, second = (model(input_ids=ids, use_cache=False).logits.float() for model in (one, two))
    return float((first - second).abs().max() / first.abs().max())
