"""Write a torch distributed checkpoint as a model folder.

    python scripts/dcp2hf.py convert --dcp_path checkpoint --hf_path model --config_path Qwen3-0.6B

--config_path is a folder with the config (and tokenizer). Convert only checkpoints that you made yourself: torch keeps
their table of contents (`.metadata`) as a pickle, which can run code when it is read.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import save_torch_state_dict
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


PREFIXES = ("model.", "state_dict.", "module.")
"""What training frameworks put in front of a model's own names."""


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("convert",), default="convert")
    parser.add_argument("--dcp_path", type=Path, required=True)
    parser.add_argument("--hf_path", type=Path, required=True)
    parser.add_argument("--config_path", type=Path, required=True)
    parser.add_argument("--shard_size", default="5GB")
    given = parser.parse_args(words)
    if given.hf_path.exists() and any(given.hf_path.iterdir()):
        print(f"{given.hf_path} already holds something: remove it or choose another folder.", file=sys.stderr)
        return 1
    config: Any = AutoConfig.from_pretrained(given.config_path, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = set(model.state_dict()) - set(model.all_tied_weights_keys)
    found = read(given.dcp_path, names)
    missing = sorted(names - found.keys())
    if missing:
        print(f"{given.dcp_path} lacks {len(missing)} weights of this model, such as {missing[0]}.", file=sys.stderr)
        return 1
    given.hf_path.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(found, given.hf_path, max_shard_size=given.shard_size)
    config.dtype = next(iter(found.values())).dtype
    config.save_pretrained(given.hf_path)
    if any(given.config_path.glob("tokenizer*")):
        AutoTokenizer.from_pretrained(given.config_path, local_files_only=True).save_pretrained(given.hf_path)
    print(f"{given.hf_path}: {len(found)} tensors.")
    return 0


def read(folder: Path, names: set[str]) -> dict[str, torch.Tensor]:
    """Read the tensors whose names, less a prefix, are those of the model; optimizer states are left alone."""
    reader = dcp.FileSystemReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    wanted = {key: entry for key, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    plain = {key: own for key in wanted if (own := own_name(key, names)) is not None}
    state = {key: torch.empty(wanted[key].size, dtype=wanted[key].properties.dtype) for key in plain}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return {plain[key]: weight for key, weight in state.items()}


def own_name(key: str, names: set[str]) -> str | None:
    """Take prefixes off until a name of the model is left."""
    while key not in names:
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            return None
        key = key.removeprefix(prefix)
    return key


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
