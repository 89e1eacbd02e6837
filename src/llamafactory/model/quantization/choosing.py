"""Chooses the quantizer of a load: the one that was asked for, or the one that the checkpoint was made with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ...extras.device import current_device, device_facts
from ...extras.env import read_env
from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...extras.packages import require
from ...extras.registry import load_attribute
from ...hparams.methods import tuning_methods
from ...hparams.quantizers import QUANTIZERS, QuantizerRow
from ..dtype import DtypeChoice
from .packed import PACKED_BY


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from ...hparams import FinetuningArguments, ModelArguments

logger = get_logger(__name__)

METHOD_NAMES = {"bitsandbytes": "bnb"}
"""What a checkpoint calls its quantizer, where it is not the name of the row."""


@dataclass(frozen=True)
class QuantizerRequest:
    """What the makers of configs look at."""

    bits: int
    kind: str
    """`nf4` or `fp4`."""
    is_double: bool
    compute_dtype: torch.dtype
    stored: dict[str, Any]
    """What the checkpoint says about itself; empty for one that is not quantized."""
    is_sharded: bool = False
    """Whether the weights will be split over devices."""
    device: torch.device = field(default_factory=lambda: current_device(read_env().local_rank or 0))
    """Where the weights will be used."""


@dataclass(frozen=True)
class Quantizer:
    """A quantizer made ready for one load."""

    row: QuantizerRow
    config: Any = None
    """A quantization config of transformers; None leaves it to what the checkpoint says."""
    pack: "Callable[[PreTrainedModel], PreTrainedModel] | None" = None
    """Packs the weights of a model that was loaded whole, on the CPU."""


def choose_quantizer(
    config: "PreTrainedConfig",
    model_args: "ModelArguments",
    finetuning_args: "FinetuningArguments | None",
    dtypes: DtypeChoice,
) -> Quantizer | None:
    """Return how the weights are quantized, or None; `finetuning_args` only where the model will learn."""
    stored = stored_quantization(config)
    bits = model_args.quantization_bit
    if not stored and bits is None:
        return None
    if stored and bits is not None:
        raise UserError(
            f"quantization_bit: {bits} cannot quantize {model_args.model_name_or_path}, which is quantized already "
            f"({stored_name(stored)}): remove quantization_bit."
        )
    name = stored_name(stored) if stored else model_args.quantization_method
    row = find_row(name)
    asked = QuantizerRequest(
        bits or 0,
        model_args.quantization_type,
        model_args.double_quantization,
        dtypes.frozen,
        stored,
        is_sharded=dtypes.is_sharded,
    )
    chosen = _ready(row, asked)
    if finetuning_args is not None and not (stored and row.build.endswith("whole_config")):
        refuse_whole_training(finetuning_args.finetuning_type, name)
    logger.info("Weights: %s%s.", row.title, f", {bits} bits" if bits else "")
    return chosen


def _ready(row: QuantizerRow, asked: QuantizerRequest) -> Quantizer:
    if row.pack and not asked.stored:
        pack: Callable[[PreTrainedModel, QuantizerRequest], PreTrainedModel] = load_attribute(row.pack)
        return Quantizer(row, pack=lambda model: pack(model, asked))
    if not row.build:
        raise UserError(f"A checkpoint that is quantized with {row.title} cannot be read; use its 16-bit parent.")
    make: Callable[[QuantizerRequest], Any] = load_attribute(row.build)
    return Quantizer(row, make(asked))


def find_row(name: str) -> QuantizerRow:
    """Return the row of a quantizer that can be had on this machine."""
    row = QUANTIZERS.get(name)
    if row is None:
        raise UserError(f"The checkpoint is quantized with {name}, which is not known here; use its 16-bit parent.")
    if row.instead:
        raise UserError(f"{row.title} cannot be used; use {row.instead}.")
    if row.devices and device_facts().kind not in row.devices:
        raise UserError(f"{row.title} needs a device of the kind {' or '.join(row.devices)}; this is a CPU run.")
    if row.package is not None:
        require(row.package, row.needs, row.title)
    if row.also is not None:
        require(row.also, None, row.title)
    return row


def refuse_whole_training(method: str, name: str) -> None:
    """Refuse to train what has no gradient: weights in few bits are whole numbers."""
    if not tuning_methods()[method].quantized:
        names = ", ".join(row.name for row in tuning_methods().values() if row.quantized)
        raise UserError(f"The weights are quantized ({name}), so finetuning_type {method} cannot train; use {names}.")


def plain_quantizer(config: "PreTrainedConfig", name: str) -> Quantizer | None:
    """Return what turns a quantized checkpoint into plain weights while loading; None for one that is plain.

    A format that cannot be turned back is a UserError.
    """
    stored = stored_quantization(config)
    if not stored:
        return None
    row = QUANTIZERS.get(stored_name(stored))
    if row is None or not row.build.endswith("whole_config"):
        title = row.title if row else stored_name(stored)
        raise UserError(
            f"{name} is quantized ({title}), and an adapter cannot be merged into that: give its 16-bit parent as "
            "model_name_or_path, with the same adapter."
        )
    make: Callable[[QuantizerRequest], Any] = load_attribute(row.build)
    return Quantizer(row, make(QuantizerRequest(0, "nf4", True, torch.float32, stored)))


def stored_quantization(config: "PreTrainedConfig") -> dict[str, Any]:
    """Return what the checkpoint says about its quantization; empty for plain weights."""
    stored: Any = getattr(config.get_text_config(), "quantization_config", None)
    stored = stored or getattr(config, "quantization_config", None)
    if stored is None:
        return {}
    return dict(stored) if isinstance(stored, dict) else dict(stored.to_dict())


def stored_name(stored: dict[str, Any]) -> str:
    """Return the name of the row."""
    name = str(stored.get("quant_method", "bitsandbytes"))
    return METHOD_NAMES.get(name, name)


def is_quantized(model: "nn.Module") -> bool:
    """Tell whether a model's weights are in few bits, so that nothing can be merged into them."""
    inner: Any = model
    return bool(getattr(inner, "is_quantized", False) or getattr(inner, PACKED_BY, ""))
