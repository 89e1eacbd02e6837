"""The 16-bit parent of a quantized model: where an adapter is merged, for nothing can be merged into few bits.

An adapter names the model it was trained on, and a quantized export of ours notes the one it was made from.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...model.loader import load_config
from ...model.quantization.choosing import stored_quantization
from ...model.sources import WHEEL_PREFIX


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ...hparams import ModelArguments

logger = get_logger(__name__)

NOTE = "quantized_from.json"
SHAPE = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What a parent has in common with what was quantized."""


def write_parent(folder: Path, model_args: "ModelArguments") -> None:
    """Note in a quantized folder which model it was made from, when that has its weights alone."""
    if model_args.adapter_name_or_path:
        return  # the merged 16-bit model stands nowhere
    name = model_args.model_name_or_path
    path = Path(name).expanduser()
    parent = str(path.resolve()) if path.exists() else name
    (folder / NOTE).write_text(json.dumps({"model_name_or_path": parent}) + "\n", encoding="utf-8")


def trace_parent(model_args: "ModelArguments", folders: Sequence[Path]) -> "ModelArguments":
    """Return the arguments with its 16-bit parent in the place of a quantized base that adapters merge into.

    Plain weights, and formats that are turned back while loading (fp8, mxfp4), are left alone.
    """
    config = load_config(model_args)
    if not folders or not stored_quantization(config) or _is_turned_back(config):
        return model_args
    tried: list[str] = []
    for name in dict.fromkeys(_candidates(model_args.model_name_or_path, folders)):
        tried.append(name)
        if not _is_there(name):
            continue
        candidate = replace(model_args, model_name_or_path=name)
        parent = load_config(candidate)
        if not stored_quantization(parent) and _shape(parent) == _shape(config):
            logger.info("%s is quantized; merging into its 16-bit parent %s.", model_args.model_name_or_path, name)
            return candidate
    looked = f" (looked at {', '.join(tried)})" if tried else ""
    raise UserError(
        f"{model_args.model_name_or_path} is quantized, nothing can be merged into it, and its 16-bit parent was not "
        f"found{looked}: give the parent as model_name_or_path, with the same adapter."
    )


def check_base(base: str, folders: Sequence[Path]) -> None:
    """Say it where an adapter names another base: their shapes may be the same and their weights not."""
    for folder in folders:
        config: Any = PeftConfig.from_pretrained(str(folder))
        named = str(config.base_model_name_or_path or base)
        if Path(named).name != Path(base).name:
            logger.warning(
                "The adapter %s was trained on %s and is merged into %s: are they the same?", folder, named, base
            )


def _candidates(base: str, folders: Sequence[Path]) -> Iterator[str]:
    note = Path(base).expanduser() / NOTE
    if note.is_file():
        yield str(json.loads(note.read_text(encoding="utf-8"))["model_name_or_path"])
    for folder in reversed(folders):
        config: Any = PeftConfig.from_pretrained(str(folder))
        named = config.base_model_name_or_path
        if named and named != base:
            yield str(named)


def _is_there(name: str) -> bool:
    """A folder that exists, or a name of a hub or of a wheel; a path of another machine is none of them."""
    path = Path(name).expanduser()
    return path.is_dir() or name.startswith(WHEEL_PREFIX) or (not path.is_absolute() and name.count("/") == 1)


def _is_turned_back(config: "PreTrainedConfig") -> bool:
    return stored_quantization(config).get("quant_method") in ("fp8", "mxfp4")


def _shape(config: "PreTrainedConfig") -> list[Any]:
    text: Any = config.get_text_config()
    return [getattr(text, name, None) for name in SHAPE]
