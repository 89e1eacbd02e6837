"""The dense decoders that we read and write ourselves: how their config and weights differ between the two formats.

What is not a key of a GGUF file, llama.cpp takes for granted (src/models/*.cpp); a config that differs in it cannot be
written. https://github.com/ggml-org/llama.cpp
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


CONFIG_KEYS: Mapping[str, str] = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""What every family has, and the attribute of the config."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of GGUF."""

    architecture: str
    model_types: tuple[str, ...]
    """What transformers calls it; a file becomes the first."""
    activation: str = "silu"
    is_paired: bool = False
    """The rows of q and k stand in pairs, one of each rotary half."""
    norm_shift: float = 0.0
    """What the norm weights are stored with on top."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Further keys of the file, where the config has a value."""
    full_every: int = 0
    """Every n-th layer sees the whole text and the others a window; 0: all see the whole."""
    wide_blocks: int = 0
    """The depth at which queries are scaled by hidden size over heads instead of the head's width."""

    def layer_types(self, num_layers: int) -> list[str]:
        """What each layer sees."""
        return [
            "full_attention" if (index + 1) % self.full_every == 0 else "sliding_attention"
            for index in range(num_layers)
        ]

    def query_width(self, config: Any) -> float:
        """The number whose root queries are divided by."""
        if config.num_hidden_layers == self.wide_blocks:
            return config.hidden_size // config.num_attention_heads
        return config.head_dim

    def assumed(self, config: Any) -> dict[str, Any]:
        """The values of a config that a file cannot hold, as llama.cpp has them."""
        key = "hidden_activation" if hasattr(config, "hidden_activation") else "hidden_act"
        values: dict[str, Any] = {key: self.activation}
        if self.full_every:
            values["layer_types"] = self.layer_types(config.num_hidden_layers)
            values["query_pre_attn_scalar"] = self.query_width(config)
        return values


GELU = "gelu_pytorch_tanh"
FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        Family(architecture="llama", model_types=("llama", "mistral"), is_paired=True),
        Family(architecture="qwen2", model_types=("qwen2",)),
        Family(architecture="qwen3", model_types=("qwen3",)),
        Family(architecture="gemma", model_types=("gemma",), activation=GELU, norm_shift=1.0),
        Family(
            architecture="gemma2",
            model_types=("gemma2",),
            activation=GELU,
            norm_shift=1.0,
            keys={
                "attention.sliding_window": "sliding_window",
                "attn_logit_softcapping": "attn_logit_softcapping",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            full_every=2,
            wide_blocks=46,
        ),
        Family(
            architecture="gemma3",
            model_types=("gemma3_text",),
            activation=GELU,
            norm_shift=1.0,
            keys={
                "attention.sliding_window": "sliding_window",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            full_every=6,
            wide_blocks=62,
        ),
    )
}


def family_of(model_type: str) -> Family | None:
    """Return the family of a model of transformers."""
    return next((family for family in FAMILIES.values() if model_type in family.model_types), None)
