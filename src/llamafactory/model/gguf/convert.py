"""Turns a GGUF file into a plain model folder: config.json, safetensors, tokenizer, generation_config.json.

Weights that were stored as quantised blocks are written as bfloat16: rounding to 8 bits of mantissa is far below the
step of the blocks themselves, and the folder is half as large and twice as fast to decode as float32. Weights that
were stored as floats keep their type exactly.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from huggingface_hub import save_torch_state_dict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from ...extras.errors import UserError
from ...extras.logging import get_logger
from .families import CONFIG_KEYS, FAMILIES
from .positions import read_positions, short
from .reader import GgufFile, read_gguf
from .tokenizer import build_tokenizer


logger = get_logger(__name__)

CONVERTER_VERSION = 2
"""Part of the cache key: raise it when the folder written for the same file changes."""

TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
FLOAT_DTYPES = {GGMLQuantizationType.F16: torch.float16, GGMLQuantizationType.BF16: torch.bfloat16}
SHARD_SIZE = "5GB"


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the model held in the GGUF file `path` into the (existing, empty) folder."""
    file = read_gguf(path)
    tokenizer = build_tokenizer(file)
    if _is_direct(file):
        config = build_config(file)
        dtype = stored_dtype(file)
        config.dtype = dtype
        state = {name: tensor.to(dtype) for name, tensor in state_tensors(file, config)}
        save_torch_state_dict(state, folder, max_shard_size=SHARD_SIZE)
        config.save_pretrained(folder)
    else:
        _convert_by_transformers(file, folder)
    tokenizer.save_pretrained(folder)
    _generation_config(file, tokenizer).save_pretrained(folder)


def build_config(file: GgufFile) -> PreTrainedConfig:
    """The transformers config of a directly convertible architecture."""
    family = FAMILIES[file.architecture]
    missing = [key for key in CONFIG_KEYS if file.get(key) is None]
    if missing:
        raise UserError(f"The GGUF file {file.path} lacks {file.architecture}.{missing[0]}, so no config can be made.")
    values: dict[str, Any] = {target: short(file.get(key)) for key, target in CONFIG_KEYS.items()}
    heads = values["num_attention_heads"]
    values["num_key_value_heads"] = file.get("attention.head_count_kv", heads)
    values["head_dim"] = file.get("attention.key_length") or values["hidden_size"] // heads
    values["rope_parameters"] = read_positions(file, values["head_dim"])
    values["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    for name, key in TOKEN_IDS.items():
        values[key] = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if file.architecture == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        values["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    values |= {target: short(file.get(key)) for key, target in family.keys.items()}
    config = AutoConfig.for_model(family.model_types[0], **values)
    for name, value in family.assumed(config).items():
        setattr(config, name, value)
    with torch.device("meta"):
        config.architectures = [type(AutoModelForCausalLM.from_config(config)).__name__]
    return config


def state_tensors(file: GgufFile, config: PreTrainedConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under its transformers name, in float32."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied: set[str] = set(model.all_tied_weights_keys)
    architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    restore = _restoring(file)
    for name, expected in model.state_dict().items():
        if name in tied:
            continue
        module, _, suffix = name.rpartition(".")
        source = f"{names.get_name(module)}.{suffix}"
        if source not in file.tensors:
            raise UserError(f"The GGUF file {file.path} has no tensor {source}, which {name} needs.")
        weight = restore(source, file.load(source))
        if weight.shape != expected.shape:
            shapes = f"{weight.shape}, but the model needs {tuple(expected.shape)}"
            raise UserError(f"The tensor {source} of {file.path} has shape {shapes}.")
        yield name, torch.from_numpy(weight)


def stored_dtype(file: GgufFile) -> torch.dtype:
    """The dtype to write: a file of floats keeps its own, quantised blocks become bfloat16."""
    if file.is_quantized:
        return torch.bfloat16
    kinds = {tensor.kind for tensor in file.tensors.values()} - {GGMLQuantizationType.F32}
    return FLOAT_DTYPES[kinds.pop()] if len(kinds) == 1 else torch.float32


def _is_direct(file: GgufFile) -> bool:
    """True where names and shapes map one to one; experts need transformers' own mapping."""
    if file.get("rope.scaling.type", "none") not in ("none", "linear", "yarn"):
        return False
    return file.architecture in FAMILIES and not file.get("expert_count")


def _restoring(file: GgufFile) -> Callable[[str, np.ndarray], np.ndarray]:
    """llama.cpp interleaves the two rotary halves of llama's q and k rows and shifts gemma's norms; this undoes it."""
    family = FAMILIES[file.architecture]
    num_heads = file.get("attention.head_count")
    heads = {"attn_q": num_heads, "attn_k": file.get("attention.head_count_kv", num_heads)}

    def restore(source: str, weight: np.ndarray) -> np.ndarray:
        if family.norm_shift and source.endswith("norm.weight"):
            return weight - np.float32(family.norm_shift)
        num_groups = heads.get(source.split(".")[-2])
        if not family.is_paired or num_groups is None:
            return weight
        halves = weight.reshape(num_groups, weight.shape[0] // num_groups // 2, 2, *weight.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)

    return restore


def _convert_by_transformers(file: GgufFile, folder: Path) -> None:
    dtype = stored_dtype(file)
    model = AutoModelForCausalLM.from_pretrained(
        str(file.path.parent),
        gguf_file=file.path.name,
        quantization_config=GgufConfig(dequantize=True),  # packed weights cannot be saved
        dtype=torch.float32,
        local_files_only=True,
    )
    # The quantiser that unpacked the file refuses to be saved, so only its weights and config are taken.
    model.config.dtype = dtype
    tied = set(model.all_tied_weights_keys)
    state = {name: weight.to(dtype) for name, weight in model.state_dict().items() if name not in tied}
    save_torch_state_dict(state, folder, max_shard_size=SHARD_SIZE)
    model.config.save_pretrained(folder)


def _generation_config(file: GgufFile, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Stop at end of sequence and, where the file names one, at end of turn."""
    named = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    stops = list(dict.fromkeys(index for index in [tokenizer.eos_token_id, *named] if index is not None))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops[0] if stops else None)
    eos = stops[0] if len(stops) == 1 else (stops or None)
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=pad)
