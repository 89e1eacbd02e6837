"""Writes a model folder as one GGUF file, one tensor in memory at a time.

Matrices are stored as the type that was asked for, vectors in float32, as llama.cpp does. The output layer (and the
embedding that it shares weights with) decides over every word and takes q8_0 beside four- and five-bit matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES
from gguf.quants import quant_shape_to_byte_shape, quantize
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from ...extras.errors import UserError
from ...extras.logging import get_logger
from .families import CONFIG_KEYS, FAMILIES, Family, family_of
from .positions import FACTORS, write_positions
from .vocabulary import write_vocabulary


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = get_logger(__name__)

F16, F32, Q8_0 = GGMLQuantizationType.F16, GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
TYPES: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (F32, LlamaFileType.ALL_F32),
    "f16": (F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
"""What the `gguf` package packs by itself."""
WHOLE = {"f32", "f16", "bf16", "q8_0"}
QUANTIZATION_VERSION = 2
HEADS = ("output.weight", "token_embd.weight")


@dataclass(frozen=True)
class Source:
    """The folder that is written."""

    folder: Path
    config: "PreTrainedConfig"
    family: Family

    @property
    def head_dim(self) -> int:
        config: Any = self.config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


def write_gguf(folder: Path, path: Path, gguf_type: str, *, name: str, adds_bos: bool) -> None:
    """Write the model in `folder` to the file `path`."""
    source = open_source(folder)
    kind, file_type = TYPES[gguf_type]
    tensors = list(_table(source, kind, gguf_type))
    writer = GGUFWriter(path, source.family.architecture)
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    factors = _write_config(writer, source)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    num_rows = next(shape[0] for target, shape, _ in tensors if target == "token_embd.weight")
    writer.add_vocab_size(num_rows)
    write_vocabulary(writer, tokenizer, num_rows, read_stops(folder), adds_bos=adds_bos)
    if factors is not None:
        _add_info(writer, FACTORS, factors.shape, F32)
    for target, shape, stored in tensors:
        _add_info(writer, target, shape, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    kinds = {target: stored for target, _, stored in tensors}
    for target, weight in load_weights(source):
        writer.write_tensor_data(quantize(weight, kinds[target]))
    writer.close()


def open_source(folder: Path) -> Source:
    """Read the config; a model that llama.cpp would compute differently is a UserError."""
    config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    family = family_of(config.model_type)
    if family is None:
        known = ", ".join(name for row in FAMILIES.values() for name in row.model_types)
        raise UserError(f"export_gguf cannot write a {config.model_type} model; it writes {known}.")
    source = Source(folder, config, family)
    if not hasattr(config, "head_dim") or config.head_dim is None:
        config.head_dim = source.head_dim
    for name, value in family.assumed(config).items():
        if getattr(config, name) != value:
            raise UserError(
                f"export_gguf: llama.cpp takes {name} {value!r} for granted in a {config.model_type} model, and this "
                f"one has {getattr(config, name)!r}."
            )
    window = getattr(config, "sliding_window", None)
    if window and not family.full_every and window < config.max_position_embeddings:
        logger.warning(
            "llama.cpp gives no window to %s models: beyond %s tokens, the GGUF file answers as if it had none.",
            config.model_type,
            window,
        )
    return source


def read_stops(folder: Path) -> list[int]:
    """Return the ids that end an answer, as the folder's generation config names them."""
    eos = GenerationConfig.from_pretrained(str(folder), local_files_only=True).eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def load_weights(source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each weight under its name in the file, in float32 and in the order of llama.cpp."""
    names = _names(source)
    for file in source.files():
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                target = _target(names, name)
                yield target, _arranged(source, target, tensors.get_tensor(name).float().numpy())


def _table(
    source: Source, kind: GGMLQuantizationType, gguf_type: str
) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
    """Yield the name, shape and stored type of each tensor, in the order of `load_weights`."""
    names = _names(source)
    found: list[tuple[str, tuple[int, ...]]] = []
    for file in source.files():
        with safe_open(file, framework="pt") as tensors:
            found += [
                (_target(names, name), tuple(tensors.get_slice(name).get_shape())) for name in sorted(tensors.keys())
            ]
    is_tied = all(target != HEADS[0] for target, _ in found)
    head = HEADS[1] if is_tied else HEADS[0]
    for target, shape in found:
        stored = F32 if len(shape) < 2 else kind
        if target == head and gguf_type not in WHOLE:
            stored = Q8_0
        if len(shape) > 1 and shape[-1] % GGML_QUANT_SIZES[stored][0]:
            stored = F16  # rows that do not divide into blocks
        yield target, shape, stored


def _names(source: Source) -> Any:
    config: Any = source.config
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == source.family.architecture)
    return get_tensor_name_map(architecture, config.num_hidden_layers)


def _target(names: Any, name: str) -> str:
    module, _, suffix = name.rpartition(".")
    target = names.get_name(module)
    if target is None:
        raise UserError(f"export_gguf: GGUF files have no place for the weight {name}.")
    return f"{target}.{suffix}"


def _arranged(source: Source, target: str, weight: np.ndarray) -> np.ndarray:
    config: Any = source.config
    if source.family.norm_shift and target.endswith("norm.weight"):
        return weight + np.float32(source.family.norm_shift)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    num_heads = heads.get(target.split(".")[-2])
    if not source.family.is_paired or num_heads is None:
        return weight
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _write_config(writer: GGUFWriter, source: Source) -> np.ndarray | None:
    config: Any = source.config
    values = {key: getattr(config, name) for key, name in {**CONFIG_KEYS, **source.family.keys}.items()}
    values["attention.head_count_kv"] = config.num_key_value_heads
    values["attention.key_length"] = values["attention.value_length"] = source.head_dim
    positions, factors = write_positions(config, source.head_dim)
    for key, value in {**values, **positions}.items():
        full = f"{source.family.architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif value is not None:
            writer.add_uint32(full, value)
    return factors


def _add_info(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
    num_bytes = int(np.prod(quant_shape_to_byte_shape(shape, kind)))
    writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes, raw_dtype=kind)
