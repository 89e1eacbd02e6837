"""Tiny arguments, trained-looking adapters and corrupted files for the tests of model, chat and export."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llamafactory.hparams import FinetuningArguments, ModelArguments
from llamafactory.model import load_model, load_tokenizer
from llamafactory.model.dtype import DtypeChoice


FLOAT32 = DtypeChoice(frozen=torch.float32, trainable=torch.float32, autocast=None, reason="exact comparisons")


def model_args(path: Path | str, **values: Any) -> ModelArguments:
    return ModelArguments(model_name_or_path=str(path), **values)


def tuning(method: str = "lora", **values: Any) -> FinetuningArguments:
    return FinetuningArguments(finetuning_type=method, **values)


def load(path: Path | str, finetuning: FinetuningArguments | None = None, **values: Any) -> Any:
    """Load a model for inference, or for training when a finetuning is given; float32 for exact comparisons."""
    arguments = model_args(path, **{"infer_dtype": "float32", **values})
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    dtype = FLOAT32 if finetuning is not None else None
    return load_model(tokenizer, arguments, finetuning or tuning(), finetuning is not None, dtype=dtype)


def randomize(model: Any, seed: int = 1, scale: float = 0.1) -> Any:
    """Give every trained weight of the model random values, as if training had moved it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * scale
    return model


def save_adapter(base: Path | str, folder: Path, seed: int = 1, **lora: Any) -> Path:
    """Write an adapter that changes what the model says."""
    randomize(load(base, tuning(**lora)), seed).save_pretrained(folder)
    return folder


def change_tensor(file: Path, name_part: str, factor: float) -> None:
    """Damage one tensor of a safetensors file."""
    tensors = load_file(file)
    name = next(name for name in tensors if name_part in name)
    tensors[name] = tensors[name] * factor
    save_file(tensors, file, metadata={"format": "pt"})


def logits(model: Any, length: int = 24) -> torch.Tensor:
    """Logits of a fixed row of ids."""
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 3 + length)[None], use_cache=False).logits.float()
