"""One GGUF file of a finished export, read back and compared with it."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from ...data.special_tokens import adds_bos
from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...hparams.exporters import GGUF_DIVERGENCE, needs_llama_quantize
from ...model.gguf import convert_gguf, open_source, write_gguf
from ...model.loader import load_config, load_weights
from .probe import Probe, require_close, require_prompts
from .saving import Promise


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...hparams import ModelArguments

logger = get_logger(__name__)

PROGRAM = "llama-quantize"
SOURCE_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
"""What llama-quantize packs from: the format of the export, so that nothing is rounded twice."""
NUM_ERROR_LINES = 3


def check_gguf(gguf_type: str | None) -> None:
    """Say before anything is merged that a type cannot be written on this machine."""
    if gguf_type and needs_llama_quantize(gguf_type) and shutil.which(PROGRAM) is None:
        raise UserError(
            f"export_gguf: {gguf_type} is packed by llama.cpp's {PROGRAM}, which is not on PATH: install llama.cpp, "
            "or take q8_0, q5_1, q5_0, q4_1 or q4_0."
        )


def add_gguf(
    folder: Path,
    name: str,
    promise: Promise,
    probe: Probe,
    tokenizer: "PreTrainedTokenizerBase",
    model_args: "ModelArguments",
) -> str:
    """Write the file into the folder, point the Modelfile at it, and return the line for the README."""
    gguf_type = model_args.export_gguf
    if gguf_type is None:
        raise ValueError("export_gguf is not set")
    open_source(folder)  # refuses what cannot be written, before minutes are spent
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}-{gguf_type.upper()}.gguf"
    has_bos = adds_bos(tokenizer)
    if needs_llama_quantize(gguf_type):
        whole = path.with_suffix(".whole")
        write_gguf(folder, whole, SOURCE_TYPES[promise.dtype], name=name, adds_bos=has_bos)
        run_quantizer(whole, path, gguf_type)
        whole.unlink()
    else:
        write_gguf(folder, path, gguf_type, name=name, adds_bos=has_bos)
    distance = verify_gguf(path, promise, probe, model_args)
    modelfile = folder / "Modelfile"
    if modelfile.is_file():
        text = modelfile.read_text(encoding="utf-8")
        modelfile.write_text(text.replace("FROM .\n", f"FROM ./{path.name}\n", 1), encoding="utf-8")
    logger.info("Wrote %s: read back, it has the same prompts, and %s.", path.name, distance)
    return f"`{path.name}`, read back and compared with the weights in this folder: same prompts; {distance}."


def run_quantizer(source: Path, target: Path, gguf_type: str) -> None:
    """Pack a file with llama.cpp's own program."""
    done = subprocess.run([PROGRAM, str(source), str(target), gguf_type.upper()], capture_output=True, check=False)
    if done.returncode != 0 or not target.is_file():
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-NUM_ERROR_LINES:]
        raise UserError(f"{PROGRAM} failed to write {gguf_type} (exit status {done.returncode}): {' '.join(words)}")


def verify_gguf(path: Path, promise: Promise, probe: Probe, model_args: "ModelArguments") -> str:
    """Read the file as our own loader does, and compare prompts and next-token probabilities; say how far it is."""
    with tempfile.TemporaryDirectory(dir=path.parent) as copy:
        convert_gguf(path, Path(copy))
        require_prompts(AutoTokenizer.from_pretrained(copy, local_files_only=True), probe)
        written = replace(model_args, model_name_or_path=copy, adapter_name_or_path=None, rope_scaling=None)
        model = load_weights(load_config(written), written, torch.float32, placed=False).eval()
        found = probe.logits(model)
    gguf_type = str(model_args.export_gguf)
    return require_close(promise.logits, found, GGUF_DIVERGENCE[gguf_type], f"the {gguf_type} file and the model")
