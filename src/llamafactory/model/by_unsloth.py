"""Training through Unsloth (https://github.com/unslothai/unsloth), where it is asked for: its loader, its LoRA layers.

Unsloth exchanges code of transformers for the whole process once it is imported, so a run that uses it is Unsloth's
from the weights to the gradients: our attention, fused layers and checkpointing stay away. What it leaves is an
ordinary adapter or model, which chat, evaluation and export load without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from transformers import PreTrainedConfig, PreTrainedModel

from ..extras.device import current_device, device_facts
from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.packages import require
from .request import LoadRequest


if TYPE_CHECKING:
    from ..hparams import ModelArguments

PACKAGE = "unsloth"
CHECKPOINTING = "unsloth"
"""Its own form of activation checkpointing, which keeps the inputs of layers in main memory."""
SHORTEST = 2048
"""What Unsloth prepares for where a run does not say how long its texts are."""


def unsloth_loader() -> Any:
    """Return Unsloth's FastLanguageModel, or say what is missing."""
    kind = device_facts().kind
    if kind not in ("cuda", "xpu"):
        raise UserError(f"use_unsloth: true needs a GPU, and this device is {kind}; remove it.")
    return require(PACKAGE, None, "use_unsloth: true").FastLanguageModel


def read_by_unsloth(source: Path | str, config: PreTrainedConfig, request: LoadRequest) -> PreTrainedModel:
    """Read the weights of a model that is trained."""
    args = request.model_args
    if args.adapter_name_or_path:
        raise UserError("use_unsloth: true starts a new adapter; export the old one into its model first.")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    wanted = args.rope_length or SHORTEST
    if longest is not None and wanted > longest:
        raise UserError(f"use_unsloth: true: cutoff_len {wanted} is more than the {longest} tokens the model reads.")
    model, _ = unsloth_loader().from_pretrained(
        model_name=str(source),
        max_seq_length=wanted,
        dtype=_short(request.dtypes.frozen),
        load_in_4bit=args.quantization_bit == 4,
        load_in_8bit=args.quantization_bit == 8,
        full_finetuning=request.finetuning_args.finetuning_type == "full",
        token=args.hf_hub_token,
        device_map={"": current_device(read_env().local_rank or 0)},
        fix_tokenizer=False,  # the tokenizer is ours
        trust_remote_code=args.trust_remote_code,
        use_gradient_checkpointing=checkpointing_of(args),
        revision=args.model_revision,
        use_exact_model_name=True,  # the weights that were named, not Unsloth's own copies of them
    )
    return model


def adapt_by_unsloth(model: PreTrainedModel, config: LoraConfig, request: LoadRequest) -> Any:
    """Put fresh LoRA layers on a model that Unsloth has read."""
    return unsloth_loader().get_peft_model(
        model,
        r=config.r,
        target_modules=layer_names(config.target_modules),
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias="none",
        use_gradient_checkpointing=checkpointing_of(request.model_args),
        max_seq_length=request.model_args.rope_length or SHORTEST,
        use_rslora=config.use_rslora,
        modules_to_save=config.modules_to_save,
    )


def layer_names(targets: Any) -> list[str] | str:
    """Return targets as Unsloth wants them: the last parts of names, or one regular expression."""
    return targets if isinstance(targets, str) else sorted({str(name).rpartition(".")[2] for name in targets})


def checkpointing_of(args: "ModelArguments") -> str | bool:
    """Return what Unsloth calls the checkpointing that is wanted; unset is its own form."""
    return False if args.disable_gradient_checkpointing else CHECKPOINTING


def _short(dtype: torch.dtype) -> torch.dtype | None:
    """Return a format that its kernels take; None lets it choose."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else None
