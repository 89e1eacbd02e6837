"""Rewrite a first-generation Qwen model (model_type qwen) as a Llama model, which any program reads without its code.

python scripts/convert_ckpt/llamafy_qwen.py --input_dir Qwen-7B --output_dir qwen-llama
"""

import re
import sys
from pathlib import Path

import torch
from checkpoint import Tensors, read_config, read_weights, run, write_llama
from transformers import LlamaConfig


NAMES = {
    "attn.c_proj": "self_attn.o_proj",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",  # its output goes through silu
    "mlp.c_proj": "mlp.down_proj",
}
OUTER = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
BLOCK = re.compile(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)")


def convert(source: Path, target: Path, shard_size: str) -> None:
    """Rename, and cut the fused projection into q, k and v."""
    old = read_config(source, "qwen")
    config = LlamaConfig(
        vocab_size=old["vocab_size"],
        hidden_size=old["hidden_size"],
        intermediate_size=old["intermediate_size"] // 2,  # Qwen counts both halves
        num_hidden_layers=old["num_hidden_layers"],
        num_attention_heads=old["num_attention_heads"],
        max_position_embeddings=old.get("max_position_embeddings", old["seq_length"]),
        rms_norm_eps=old["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(old["rotary_emb_base"])},
        attention_bias=True,
        tie_word_embeddings=False,
    )
    write_llama(config, rename(read_weights(source)), source, target, shard_size)


def rename(old: Tensors) -> Tensors:
    """Give each weight its name in Llama."""
    new: Tensors = {}
    for name, weight in old.items():
        if name in OUTER:
            new[OUTER[name]] = weight
            continue
        match = BLOCK.fullmatch(name)
        if match is None:
            raise KeyError(f"The weight {name} is not one of Qwen's.")
        layer, part, kind = match.groups()
        prefix = f"model.layers.{layer}"
        if part == "attn.c_attn":
            for letter, piece in zip("qkv", weight.chunk(3), strict=True):
                new[f"{prefix}.self_attn.{letter}_proj.{kind}"] = piece
            if kind == "bias":  # Llama's bias is on all four or on none
                new[f"{prefix}.self_attn.o_proj.bias"] = torch.zeros_like(weight.chunk(3)[0])
        else:
            new[f"{prefix}.{NAMES[part]}.{kind}"] = weight
    return new


if __name__ == "__main__":
    sys.exit(run(__doc__, convert, sys.argv[1:]))
