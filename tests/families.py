"""Tiny models of many architectures, with fresh weights; equal at each call."""

from typing import Any

import torch


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 6},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWED},
    "gemma3_text": {"head_dim": 8, **WINDOWED},
    "granite": {"attention_multiplier": 0.3},
    "cohere2": WINDOWED,
    "glm4": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"head_dim": 8, **MIXTURE},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8},
    "qwen3_next": {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
        **MIXTURE,
    },
}
"""What each needs besides SIZES; a family that is not here needs nothing."""


def family_model(family: str, attention: str | None = "sdpa", **changes: Any) -> Any:
    """Make a model; attention None is the model's own choice."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
