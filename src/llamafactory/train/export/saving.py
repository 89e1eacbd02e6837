"""Writing the merged model, reading it back, and comparing what was written with what was promised."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from ...data.slot_template import SlotTemplate
from ...model.dtype import SHORT
from ...model.loader import load_config, load_weights
from ...model.model_utils.valuehead import head_of
from ...model.sources import resolve_model
from ..rm.padding import separate_padding
from .merging import Merge
from .probe import EXACT_TOLERANCE, Probe, require_equal, require_prompts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...data.template import Template
    from ...hparams import ModelArguments

ROUNDING_STEPS = 8
"""How many rounding steps of the export's format the cast may move a logit, as a share of the largest one."""


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class Promise:
    """What the folder on disk must answer, after the model in memory is gone."""

    logits: list[torch.Tensor]
    dtype: torch.dtype
    merge_gap: float | None
    rounding_gap: float
    """How far the cast to the export's format moved the logits."""
    is_score: bool = False
    """A reward model: its only logit is a score."""


def save_export(
    merge: Merge,
    probe: Probe,
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    template: "Template",
    model_args: "ModelArguments",
) -> Promise:
    """Cast and write weights, config, generation config and tokenizer; return what the folder must answer."""
    model: Any = merge.model
    cast_parameters(model, merge.dtype)
    model.config.use_cache = True
    stops = template.get_stop_token_ids(tokenizer)
    if model.can_generate():
        generation: Any = model.generation_config  # it takes settings that its class does not name
        generation.eos_token_id = stops[0] if len(stops) == 1 else stops
        generation.pad_token_id = tokenizer.pad_token_id
        if (flag := thinking_flag(template, tokenizer)) is not None:
            generation.enable_thinking = flag
            generation._from_model_config = False  # such a one loses the flag when it is read
    else:
        separate_padding(tokenizer, model, stops)  # a reward model
    model.save_pretrained(folder, max_shard_size=f"{model_args.export_size}GB")
    tokenizer.padding_side = "left" if model.can_generate() else "right"  # prompts of a batch end where it writes
    tokenizer.save_pretrained(folder)
    if isinstance(template, SlotTemplate):
        (folder / "Modelfile").write_text(template.get_ollama_modelfile(tokenizer), encoding="utf-8")

    cast_parameters(model, torch.float32)
    rounded = probe.logits(model)
    tolerance = EXACT_TOLERANCE if merge.dtype == torch.float32 else ROUNDING_STEPS * torch.finfo(merge.dtype).eps
    gap = require_equal(
        merge.logits, rounded, tolerance, f"the model before and after rounding to {SHORT[merge.dtype]}"
    )
    return Promise(rounded, merge.dtype, merge.gap, gap, not model.can_generate())


def thinking_flag(template: "Template", tokenizer: "PreTrainedTokenizerBase") -> bool | None:
    """Return the run's `enable_thinking`, which chat reads later; None where the template knows no thoughts."""
    if isinstance(template, SlotTemplate):
        return None if template.thinking is None else template.enable_thinking
    return template.enable_thinking if "enable_thinking" in str(tokenizer.chat_template) else None


def save_processor(processor: Any, folder: Path, model_args: "ModelArguments") -> None:
    """Write what a multimodal model reads images and sound with: a local model's own files, else what was loaded.

    The chat template stays the one of this run, which was written with the tokenizer.
    """
    source = resolve_model(model_args.model_name_or_path, model_args, needs_weights=False)
    if isinstance(source, Path):
        for name in PROCESSOR_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    if processor is not None:
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            processor.save_pretrained(aside)
            for name in PROCESSOR_FILES:
                if (Path(aside) / name).is_file():
                    shutil.move(Path(aside) / name, folder / name)


def cast_parameters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights only: `model.to` would round the rotary frequencies too, which every load computes anew."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def verify_export(promise: Promise, probe: Probe, folder: Path, model_args: "ModelArguments") -> None:
    """Read the folder as anybody would and compare prompts and logits with what was promised."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    require_prompts(tokenizer, probe)
    written = replace(model_args, model_name_or_path=str(folder), adapter_name_or_path=None, rope_scaling=None)
    config = load_config(written)
    placed = model_args.export_device == "auto"
    copy = load_weights(config, written, torch.float32, placed=placed, head=head_of(config, ()))
    require_equal(promise.logits, probe.logits(copy.eval()), EXACT_TOLERANCE, "the exported folder and the model")
