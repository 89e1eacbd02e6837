"""Reads the weights of a model folder and writes a plain one: what the converters beside this file share."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from llamafactory.extras.errors import UserError


Tensors = dict[str, torch.Tensor]
TOKENIZER_FILES = ("token*", "*.model", "*.tiktoken", "special_tokens_map.json", "vocab*", "merges.txt", "generation*")


def read_config(folder: Path, model_type: str) -> dict[str, Any]:
    """Read config.json and refuse another kind of model."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != model_type:
        raise UserError(f"{folder} holds a {config.get('model_type')} model; this converts {model_type}.")
    return config


def read_weights(folder: Path) -> Tensors:
    """Read safetensors, or .bin files as tensors only: nothing in them is executed."""
    state: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    if not state:
        for file in sorted(folder.glob("*.bin")):
            state |= torch.load(file, "cpu", weights_only=True)
    if not state:
        raise UserError(f"{folder} holds neither .safetensors nor .bin weights.")
    return state


def write_llama(config: LlamaConfig, state: Tensors, source: Path, target: Path, shard_size: str) -> None:
    """Write a Llama folder; a weight too many, too few or of another shape is an error and nothing is written."""
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} already holds something: remove it or choose another folder.")
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | state.keys()
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    )
    if wrong:
        raise UserError(f"{len(wrong)} weights do not fit, such as {wrong[0]}.")
    target.mkdir(parents=True, exist_ok=True)
    # clones: pieces of a fused matrix share its memory, and would be taken for tied weights
    own = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in state.items()}
    save_torch_state_dict(own, target, max_shard_size=shard_size)
    config.architectures, config.dtype = ["LlamaForCausalLM"], state["model.norm.weight"].dtype
    config.save_pretrained(target)
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            (target / file.name).write_bytes(file.read_bytes())


def run(doc: str | None, convert: Callable[[Path, Path, str], None], words: list[str]) -> int:
    """The command line of a converter."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--shard_size", default="2GB")
    given = parser.parse_args(words)
    try:
        convert(given.input_dir, given.output_dir, given.shard_size)
    except (UserError, OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.output_dir}: a Llama model.")
    return 0
