"""Rewrite Baichuan 2 7B as a Llama model, which every program reads without its code.

    python scripts/convert_ckpt/llamafy_baichuan2.py --input_dir Baichuan2-7B-Chat --output_dir baichuan2-llama

The 13B model has no rotary positions (ALiBi), so it cannot be one.
"""

import sys
from pathlib import Path

import torch
from checkpoint import Tensors, read_config, read_weights, run, write_llama
from transformers import LlamaConfig

from llamafactory.extras.errors import UserError


PACK, HEAD = "W_pack.weight", "lm_head.weight"


def convert(source: Path, target: Path, shard_size: str) -> None:
    """Cut the fused projection, and normalise the rows of the output layer once and for all."""
    old = read_config(source, "baichuan")
    if "max_position_embeddings" not in old:
        raise UserError(
            f"{source} has no rotary positions (it is a 13B model, with ALiBi), so it cannot become a Llama."
        )
    config = LlamaConfig(
        vocab_size=old["vocab_size"],
        hidden_size=old["hidden_size"],
        intermediate_size=old["intermediate_size"],
        num_hidden_layers=old["num_hidden_layers"],
        num_attention_heads=old["num_attention_heads"],
        max_position_embeddings=old["max_position_embeddings"],
        rms_norm_eps=old["rms_norm_eps"],
        tie_word_embeddings=False,
        bos_token_id=old.get("bos_token_id", 1),
        eos_token_id=old.get("eos_token_id", 2),
        pad_token_id=old.get("pad_token_id", 0),
    )
    write_llama(config, rename(read_weights(source)), source, target, shard_size)


def rename(old: Tensors) -> Tensors:
    """Give each weight its name in Llama; Baichuan 2 divides the rows of its output layer by their length."""
    new: Tensors = {}
    for name, weight in old.items():
        if name.endswith(PACK):
            for letter, piece in zip("qkv", weight.chunk(3), strict=True):
                new[name.replace(PACK, f"{letter}_proj.weight")] = piece
        elif name == HEAD:
            new[name] = torch.nn.functional.normalize(weight.float()).to(weight.dtype)
        elif not name.endswith("rotary_emb.inv_freq"):
            new[name] = weight
    return new


if __name__ == "__main__":
    sys.exit(run(__doc__, convert, sys.argv[1:]))
