"""Writes a changed base model and the adapter that training begins with on it (LoftQ, PiSSA).

Both lie in one folder: the model, and the adapter in a folder inside. Training, chat and export that name the two get
the very same base, whatever quantizer they load it with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners import lora
from torch import Tensor

from ..extras.errors import UserError
from ..hparams import ModelArguments
from .adapters.saved import without_noise
from .adapters.targets import find_targets
from .dtype import stored_dtype
from .loader import load_config, load_tokenizer, load_weights
from .quantization.loftq import Split


SplitWeight = Callable[[Tensor, int, float], Split]
"""Splits a weight for a rank and a scale."""


@dataclass(frozen=True, kw_only=True)
class StartingAdapter:
    """The adapter to begin with."""

    rank: int
    alpha: int
    dropout: float
    target: tuple[str, ...]


def write_starting_base(
    source: str, target: Path, folder: str, adapter: StartingAdapter, split: SplitWeight
) -> tuple[Path, int]:
    """Split the weights of all targets and save; returns the adapter's folder and how many layers it has."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"output_dir {str(target)!r} already holds something: remove it or choose another folder.")
    arguments = ModelArguments(model_name_or_path=source)
    config = load_config(arguments)
    model = load_weights(config, arguments, stored_dtype(config), placed=False)
    found = find_targets(model, adapter.target, "lora_target")
    if found.parameters:
        raise UserError(
            f"The joined experts {', '.join(found.parameters)} cannot be split; name layers in lora_target."
        )
    options = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=found.modules,
        task_type=TaskType.CAUSAL_LM,
    )
    with without_noise():
        adapted = get_peft_model(model, options)
    layers = [module for module in adapted.modules() if isinstance(module, lora.Linear)]
    with torch.no_grad():
        for layer in layers:
            _split_layer(layer, adapter.rank, split)
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"an adapter made a {type(adapted).__name__}")
    adapted.peft_config["default"].base_model_name_or_path = str(target.resolve())
    config.save_pretrained(target)  # PEFT looks into the base it names
    adapted.save_pretrained(str(target / folder), save_embedding_layers=False)
    tuner: Any = adapted.base_model
    tuner.unload().save_pretrained(target)
    load_tokenizer(arguments)["tokenizer"].save_pretrained(target)
    return target / folder, len(layers)


def _split_layer(layer: lora.Linear, rank: int, split: SplitWeight) -> None:
    base: Any = layer.get_base_layer()
    parts = split(base.weight.detach(), rank, layer.scaling["default"])
    base.weight.data = parts.base_OD
    for matrix, part in ((layer.lora_A["default"], parts.a_RD), (layer.lora_B["default"], parts.b_OR)):
        matrix.get_parameter("weight").data = part.float().contiguous()
