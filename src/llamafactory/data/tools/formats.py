"""The table of tool formats: the name in `tool_format` and in templates to its object, imported when used."""

from ...extras.registry import Registry
from .tool_format import ToolFormat


TOOL_FORMATS: Registry[ToolFormat] = Registry(
    "tool format",
    {
        name: f"{__package__}.{place}"
        for name, place in {
            "default": "named_json:DEFAULT",
            "deepseek_v3": "named_json:DEEPSEEK_V3",
            "deepseek_v3_1": "named_json:DEEPSEEK_V3_1",
            "deepseek_v3_2": "xml_arguments:DEEPSEEK_V3_2",
            "gemma4": "gemma:GEMMA4",
            "glm4": "named_json:GLM4",
            "glm4_7": "xml_arguments:GLM4_7",
            "glm4_moe": "xml_arguments:GLM4_MOE",
            "granite3": "tagged_json:GRANITE3",
            "granite4": "tagged_json:GRANITE4",
            "hermes": "tagged_json:QWEN",
            "kimi_k2": "named_json:KIMI_K2",
            "lfm2": "pythonic:LFM2",
            "ling": "tagged_json:LING",
            "llama3": "bare_json:LLAMA3",
            "minimax1": "tagged_json:MINIMAX1",
            "minimax2": "xml_arguments:MINIMAX2",
            "mistral": "bare_json:MISTRAL",
            "mistral_v13": "named_json:MISTRAL_V13",
            "phi4_mini": "tagged_json:PHI4_MINI",
            "qwen": "tagged_json:QWEN",
            "qwen3_5": "xml_arguments:QWEN3_5",
            "seed_oss": "xml_arguments:SEED_OSS",
        }.items()
    },
)
