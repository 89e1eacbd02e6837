"""Rotary angles in both formats: their base, and how they are stretched for longer texts.

Llama 3's stretching is a tensor in a GGUF file, of what each angle is divided by.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...extras.errors import UserError
from .reader import GgufFile


FACTORS = "rope_freqs.weight"
LLAMA3_ORIGINAL = 8192
"""The length that every Llama 3 was made with, where a file does not tell."""
LOW, HIGH = 1.0, 4.0
"""Llama 3's own bounds: angles between them are stretched partly."""
FACTOR_KEYS = ("factor",)
KEPT = {"default", "linear", "yarn", "llama3"}
TUNED = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
"""Settings of yarn that llama.cpp has its own fixed values for, which are transformers' defaults."""


def llama3_factors(theta: float, dim: int, stretch: Mapping[str, Any]) -> np.ndarray:
    """What each angle is divided by (as transformers' modeling_rope_utils computes it)."""
    factor, original = float(stretch["factor"]), float(stretch["original_max_position_embeddings"])
    low, high = float(stretch["low_freq_factor"]), float(stretch["high_freq_factor"])
    waves = 2 * math.pi * theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    share = (original / waves - low) / (high - low)
    partly = 1 / ((1 - share) / factor + share)
    factors = np.where(waves < original / high, 1.0, np.where(waves > original / low, factor, partly))
    return factors.astype(np.float32)


def split_positions(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rope parameters of the layers that see everything, and of those with a window (gemma 3)."""
    parameters = config.rope_parameters
    if "full_attention" in parameters:
        return dict(parameters["full_attention"]), dict(parameters["sliding_attention"])
    return dict(parameters), {}


def write_positions(config: Any, head_dim: int) -> tuple[dict[str, Any], np.ndarray | None]:
    """Return the keys (under the architecture) and the tensor of factors that describe the angles of a config."""
    whole, windowed = split_positions(config)
    kind = whole.get("rope_type", "default")
    if kind not in KEPT or any(whole.get(name) is not None for name in TUNED):
        raise UserError(f"export_gguf: llama.cpp cannot stretch positions as this model does (rope_type {kind}).")
    if whole.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("export_gguf: this model turns only a part of each head by position, which is not supported.")
    keys: dict[str, Any] = {"rope.dimension_count": head_dim, "rope.freq_base": float(whole["rope_theta"])}
    if windowed:
        keys["rope.freq_base_swa"] = float(windowed["rope_theta"])
    if kind == "llama3":
        keys["rope.scaling.original_context_length"] = int(whole["original_max_position_embeddings"])
        return keys, llama3_factors(keys["rope.freq_base"], head_dim, whole)
    if kind != "default":
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(whole["factor"])}
    if kind == "yarn":
        original = whole.get("original_max_position_embeddings") or config.max_position_embeddings
        keys["rope.scaling.original_context_length"] = int(original)
    return keys, None


def read_positions(file: GgufFile, head_dim: int) -> dict[str, Any]:
    """Return the rope parameters of a file."""
    whole: dict[str, Any] = {"rope_type": "default", "rope_theta": short(file.get("rope.freq_base", 10000.0))}
    original = file.get("rope.scaling.original_context_length")
    kind = file.get("rope.scaling.type", "none")
    if FACTORS in file.tensors:
        whole |= _read_llama3(file, whole["rope_theta"], head_dim, original or LLAMA3_ORIGINAL)
    elif kind != "none":
        whole |= {"rope_type": kind, "factor": short(file.get("rope.scaling.factor", 1.0))}
        if kind == "yarn":
            whole["original_max_position_embeddings"] = original
    windowed = file.get("rope.freq_base_swa")
    if file.architecture != "gemma3":
        return whole
    return {
        "full_attention": whole,
        "sliding_attention": {"rope_type": "default", "rope_theta": short(windowed or 10000.0)},
    }


def _read_llama3(file: GgufFile, theta: float, head_dim: int, original: int) -> dict[str, Any]:
    """Find the stretching that gives the file's factors."""
    factors = file.load(FACTORS)
    stretch = {
        "rope_type": "llama3",
        "factor": short(float(factors.max())),
        "original_max_position_embeddings": original,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
    }
    expected = llama3_factors(theta, head_dim, stretch)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise UserError(
            f"The GGUF file {file.path} keeps scaled rotary frequencies as a tensor that is not Llama 3's, which a "
            "transformers config cannot hold; use the model's safetensors version."
        )
    return stretch


def short(value: Any) -> Any:
    """1e-05 instead of 9.999999747378752e-06: the shortest decimal of the same float32."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
