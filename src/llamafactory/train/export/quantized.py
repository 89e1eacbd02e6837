"""The export in few bits: quantized from the checked 16-bit folder, read back, and compared with it."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...extras.device import device_facts
from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...extras.packages import require
from ...extras.registry import load_attribute
from ...hparams.exporters import BITS_DIVERGENCE, EXPORT_QUANTIZERS, ExportQuantizerRow
from ...model.loader import load_config, load_weights
from ...model.quantization import plain_quantizer
from .calibration import calibration_rows
from .parent import write_parent
from .probe import Probe, require_close
from .quantizers.request import QuantizeRequest
from .saving import Promise


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...hparams import ModelArguments

logger = get_logger(__name__)

REPLACED = ("*.safetensors", "*.safetensors.index.json", "config.json")
ADDED = (*REPLACED, "quantize_config.json", "quant_log.csv")
"""What a quantizer writes that belongs to the model; the tokenizer stays the one that was checked."""


def find_quantizer(model_args: "ModelArguments") -> ExportQuantizerRow | None:
    """Return the quantizer of an export, or None; one that cannot be had here is a UserError, before any work."""
    method, bits = model_args.export_quantization_method, model_args.export_quantization_bit
    if method is None and bits is None:
        return None
    row = EXPORT_QUANTIZERS[method or "gptq"]
    if row.devices and device_facts().kind not in row.devices:
        raise UserError(
            f"export_quantization_method: {row.name} needs a device of the kind {' or '.join(row.devices)}."
        )
    if row.package is not None:
        require(row.package, row.needs, f"export_quantization_method: {row.name}")
    if row.reader is not None:
        require(row.reader, None, f"reading a {row.title} model back")
    return row


def quantize_export(
    row: ExportQuantizerRow,
    folder: Path,
    promise: Promise,
    probe: Probe,
    tokenizer: "PreTrainedTokenizerBase",
    model_args: "ModelArguments",
) -> str:
    """Replace the weights of the folder by quantized ones and return the line for the README."""
    bits = model_args.export_quantization_bit or row.bits[0]
    rows = calibration_rows(tokenizer, model_args) if row.is_calibrated else []
    quantize: Callable[[QuantizeRequest], None] = load_attribute(row.build)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        target = Path(aside)
        quantize(QuantizeRequest(folder, target, bits, promise.dtype, f"{model_args.export_size}GB", rows))
        take_over(target, folder)
    write_parent(folder, model_args)
    distance = verify_quantized(row, bits, folder, promise, probe, model_args)
    logger.info("Quantized with %s to %s bits: %s.", row.title, bits, distance)
    texts = f", measured on {len(rows)} texts" if rows else ""
    return f"Quantized with {row.title} to {bits} bits{texts}; against the weights before: {distance}."


def take_over(source: Path, folder: Path) -> None:
    """Put what a quantizer wrote in the place of the plain weights."""
    for pattern in REPLACED:
        for path in folder.glob(pattern):
            path.unlink()
    for pattern in ADDED:
        for path in source.glob(pattern):
            shutil.move(path, folder / path.name)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" not in config:
        raise UserError("The export was removed: the quantizer left no word of its method in config.json.")


def verify_quantized(
    row: ExportQuantizerRow,
    bits: int,
    folder: Path,
    promise: Promise,
    probe: Probe,
    model_args: "ModelArguments",
) -> str:
    """Read the folder as any loader does and compare next-token probabilities with those of the plain weights."""
    written = replace(model_args, model_name_or_path=str(folder), adapter_name_or_path=None, rope_scaling=None)
    config = load_config(written)
    quantizer = plain_quantizer(config, str(folder)) if row.name == "fp8" else None  # its products need a GPU
    model = load_weights(config, written, promise.dtype, placed=device_facts().kind != "cpu", quantizer=quantizer)
    return require_close(
        promise.logits,
        probe.logits(model.eval()),
        BITS_DIVERGENCE[bits],
        f"the {bits}-bit export and the 16-bit model",
    )
