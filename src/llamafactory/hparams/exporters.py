"""What an export can be quantized with, and the types of GGUF files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from .capability import Capability, by_name


OWN = "llamafactory.train.export.quantizers"

GgufType = Literal[
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q5_1",
    "q5_0",
    "q4_1",
    "q4_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q4_k_m",
    "q4_k_s",
    "q3_k_l",
    "q3_k_m",
    "q3_k_s",
    "q2_k",
]
GGUF_TYPES: tuple[str, ...] = get_args(GgufType)
GGUF_DIVERGENCE: Mapping[str, float] = {
    "f32": 1e-5,
    "f16": 1e-3,
    "bf16": 0.01,
    "q8_0": 0.05,
    "q5_1": 0.6,
    "q5_0": 0.6,
    "q4_1": 2.0,
    "q4_0": 2.0,
    "q6_k": 0.2,
    "q5_k_m": 0.6,
    "q5_k_s": 0.6,
    "q4_k_m": 1.5,
    "q4_k_s": 1.5,
    "q3_k_l": 3.0,
    "q3_k_m": 3.0,
    "q3_k_s": 4.0,
    "q2_k": 5.0,
}
"""Largest mean KL divergence from the 16-bit model, in nats per token.

About three times what a 135M model shows, which suffers more than larger ones; a file with wrong rows has 5 and more.
"""
BITS_DIVERGENCE: Mapping[int, float] = {8: 0.1, 4: 2.0, 3: 4.0, 2: 7.0}
"""The same for what export_quantization_bit makes; 2 bits of a small model say little."""
ExportQuantizer = Literal["gptq", "awq", "bnb", "torchao", "fp8"]


def needs_llama_quantize(gguf_type: str) -> bool:
    """Tell whether only llama.cpp's own program can write this type."""
    return "_k" in gguf_type


@dataclass(frozen=True, kw_only=True)
class ExportQuantizerRow(Capability):
    """A way of writing an export in few bits."""

    bits: tuple[int, ...]
    """Values of export_quantization_bit."""
    reader: str | None = None
    """The module that transformers needs to read the result back."""
    is_calibrated: bool = False
    """It measures its error on texts, so export_quantization_dataset must name some."""


EXPORT_QUANTIZERS = by_name(
    (
        ExportQuantizerRow(
            name="gptq",
            title="GPTQ",
            build=f"{OWN}.gptq:quantize_gptq",
            package="gptqmodel",
            reader="optimum",
            bits=(2, 3, 4, 8),
            is_calibrated=True,
        ),
        ExportQuantizerRow(
            name="awq",
            title="AWQ",
            build=f"{OWN}.gptq:quantize_awq",
            package="gptqmodel",
            reader="optimum",
            devices=("cuda",),
            bits=(4,),
            is_calibrated=True,
        ),
        ExportQuantizerRow(
            name="bnb",
            title="bitsandbytes",
            build=f"{OWN}.loading:quantize_bnb",
            package="bitsandbytes",
            needs="bnb",
            bits=(4, 8),
        ),
        ExportQuantizerRow(
            name="torchao",
            title="torchao, weights only",
            build=f"{OWN}.loading:quantize_torchao",
            package="torchao",
            needs="ao",
            bits=(4, 8),
        ),
        ExportQuantizerRow(
            name="fp8",
            title="FP8 in blocks of 128 x 128",
            build=f"{OWN}.fp8:quantize_fp8",
            bits=(8,),
        ),
    )
)
