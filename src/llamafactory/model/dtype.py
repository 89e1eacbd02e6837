"""Which number formats a run uses: one pure function, so that every caller and the log say the same."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from ..extras.device import DeviceFacts
from ..extras.errors import UserError


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..hparams import FinetuningArguments, ModelArguments, TrainingArguments


Autocast = Literal["bf16", "fp16"]
NAMED_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True, kw_only=True)
class DtypeFlags:
    """What the user asked for; the defaults are "choose for me"."""

    is_trainable: bool = False
    bf16: bool | None = None
    fp16: bool = False
    pure_bf16: bool = False
    infer_dtype: str = "auto"
    is_sharded: bool = False


@dataclass(frozen=True, kw_only=True)
class DtypeChoice:
    """The answer: formats of the weights, the autocast of the forward pass, and why."""

    frozen: torch.dtype
    """Weights that do not learn: the base below an adapter, all weights at inference."""
    trainable: torch.dtype
    """Weights that learn: float32 unless `pure_bf16`, because small updates are lost in 8 bits of mantissa."""
    autocast: Autocast | None
    reason: str
    is_sharded: bool = False
    """Weights are split over devices, which joins those of one format: packed ones have to name the frozen format."""

    def __str__(self) -> str:
        if self.autocast is None and self.frozen == self.trainable:
            return f"{SHORT[self.frozen]} ({self.reason})"
        return (
            f"{self.autocast or 'no'} autocast, {SHORT[self.frozen]} frozen weights, {SHORT[self.trainable]} trained "
            f"weights ({self.reason})"
        )


def training_flags(training_args: "TrainingArguments", finetuning_args: "FinetuningArguments") -> DtypeFlags:
    """The flags of a training run."""
    return DtypeFlags(
        is_trainable=True,
        bf16=training_args.bf16,
        fp16=training_args.fp16,
        pure_bf16=finetuning_args.pure_bf16,
        is_sharded=shards_weights(training_args),
    )


def shards_weights(training_args: "TrainingArguments") -> bool:
    """Whether the weights may be split over devices: FSDP, or DeepSpeed, whose stage 3 does it."""
    return training_args.fsdp not in (None, "", False) or training_args.deepspeed is not None


def inference_flags(model_args: "ModelArguments") -> DtypeFlags:
    """The flags of chat, evaluation and export."""
    return DtypeFlags(infer_dtype=model_args.infer_dtype)


def stored_dtype(config: "PreTrainedConfig") -> torch.dtype:
    """The format the checkpoint says its weights are in; one that does not say is float32, as in older files."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def choose_dtype(flags: DtypeFlags, facts: DeviceFacts, stored: torch.dtype | None = None) -> DtypeChoice:
    """Choose from the flags, the device and (at inference) the format in which the weights are stored."""
    if flags.is_trainable:
        return replace(_for_training(flags, facts), is_sharded=flags.is_sharded)
    if flags.infer_dtype != "auto":
        return _as_asked(flags.infer_dtype, facts)
    return _for_inference(stored or torch.float32, facts)


def _for_training(flags: DtypeFlags, facts: DeviceFacts) -> DtypeChoice:
    if flags.pure_bf16:
        return _uniform(torch.bfloat16, "pure_bf16 was asked for")
    if flags.fp16:
        if facts.kind == "cpu":
            raise UserError("fp16 training needs a GPU: on a CPU set bf16: true, or leave both out.")
        return _mixed("fp16", torch.float16, "fp16 was asked for")
    if flags.bf16 is False:
        return _uniform(torch.float32, "bf16: false was asked for")
    if flags.bf16:
        slow = "" if facts.bf16 else f", although {facts.name} is slow at it"
        return _mixed("bf16", torch.bfloat16, f"bf16 was asked for{slow}")
    if facts.bf16:
        return _mixed("bf16", torch.bfloat16, f"{facts.name} is fast at bf16")
    return _uniform(torch.float32, f"{facts.name} is not fast at bf16")


def _for_inference(stored: torch.dtype, facts: DeviceFacts) -> DtypeChoice:
    if stored == torch.bfloat16 and facts.bf16:
        return _uniform(stored, f"the weights are stored so and {facts.name} is fast at it")
    if stored == torch.float16 and facts.kind != "cpu":
        return _uniform(stored, "the weights are stored so")
    if stored in (torch.bfloat16, torch.float16):
        return _uniform(torch.float32, f"the weights are stored as {SHORT[stored]}, which {facts.name} is slow at")
    return _uniform(torch.float32, "the weights are stored so")


def _as_asked(name: str, facts: DeviceFacts) -> DtypeChoice:
    if name == "float16" and facts.kind == "cpu":
        raise UserError("infer_dtype float16 needs a GPU: on a CPU use bfloat16 or float32.")
    return _uniform(NAMED_DTYPES[name], f"infer_dtype {name} was asked for")


def _uniform(dtype: torch.dtype, reason: str) -> DtypeChoice:
    return DtypeChoice(frozen=dtype, trainable=dtype, autocast=None, reason=reason)


def _mixed(autocast: Autocast, dtype: torch.dtype, reason: str) -> DtypeChoice:
    return DtypeChoice(frozen=dtype, trainable=torch.float32, autocast=autocast, reason=reason)
