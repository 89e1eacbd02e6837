"""Turning a model into a mixture of depths, and finding one again on disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from .layers import PART, add_routers


if TYPE_CHECKING:
    from ...hparams import ModelArguments

logger = get_logger(__name__)

NOTE = "mixture_of_depths"
"""What config.json calls it."""
CAPACITY = 0.125
"""The share of tokens that a layer computes; the paper's best."""
EVERY = 2
"""Every second layer has a router; the paper's best."""
FILES = ["*.safetensors", "*.safetensors.index.json"]


def has_depths(model: Any) -> bool:
    """Whether the layers of a model compute some tokens only."""
    return getattr(getattr(model, "config", None), NOTE, None) is not None


def refuse_depths(config: Any, what: str) -> None:
    """Refuse what a mixture of depths cannot be."""
    if getattr(config, NOTE, None) is not None:
        raise UserError(f"A mixture of depths cannot be {what}.")


def with_depths(model: PreTrainedModel, source: Path | str, model_args: "ModelArguments") -> PreTrainedModel:
    """Do what `mixture_of_depths` says; a model that is one already is always loaded as one."""
    asked, note = model_args.mixture_of_depths, getattr(model.config, NOTE, None)
    if note is None and asked is None:
        return model
    if note is None and asked == "load":
        raise UserError(
            f"mixture_of_depths: load needs a mixture of depths, and {source} is none; `convert` makes one."
        )
    if note is not None and asked == "convert":
        raise UserError(f"{source} is a mixture of depths already; set mixture_of_depths: load.")
    if note is None:
        total = model.config.get_text_config().num_hidden_layers
        note = {"capacity": CAPACITY, "layers": list(range(1, total, EVERY))}
    add_routers(model, note["layers"], note["capacity"])
    if asked != "convert" and not model_args.train_from_scratch:
        read_routers(model, source, model_args)
    setattr(model.config, NOTE, note)
    model.config.use_cache = False
    generation = getattr(model, "generation_config", None)  # a model that only scores has none
    if generation is not None:
        generation.use_cache = False
    attention = "sdpa" if model._supports_sdpa else "eager"
    if model_args.flash_attn != "disabled":
        model.set_attn_implementation(attention)
    logger.info(
        "Mixture of depths: %s layers compute %.1f %% of the tokens of a text.",
        len(note["layers"]),
        100 * note["capacity"],
    )
    return model


def read_routers(model: PreTrainedModel, source: Path | str, model_args: "ModelArguments") -> None:
    """Read the routers, which transformers does not know, from the files of the model."""
    wanted = {name for name in model.state_dict() if f".{PART}." in name}
    found: dict[str, Tensor] = {}
    for file in sorted(folder_of(source, model_args).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in wanted.intersection(tensors.keys())}
    if wanted - found.keys():
        raise UserError(f"{source} lacks the routers of its mixture of depths, such as {min(wanted - found.keys())}.")
    with torch.no_grad():
        for name, tensor in found.items():
            model.get_parameter(name).copy_(tensor)


def folder_of(source: Path | str, model_args: "ModelArguments") -> Path:
    """Return where the weights lie; those of a hub are in its cache since the model was read."""
    if isinstance(source, Path):
        return source
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            source,
            revision=model_args.model_revision,
            token=model_args.hf_hub_token,
            cache_dir=model_args.cache_dir,
            allow_patterns=FILES,
        )
    )
