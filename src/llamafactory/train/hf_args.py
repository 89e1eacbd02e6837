"""Our arguments as transformers' Seq2SeqTrainingArguments.

Every key of transformers stands in our TrainingArguments under the same name; this file adds what only a run can
know (number format, device) and the few settings that the driver decides for itself.
"""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import Seq2SeqTrainingArguments

from ..extras.device import DeviceFacts, device_facts
from ..extras.errors import UserError
from ..model.dtype import DtypeChoice, choose_dtype, training_flags


if TYPE_CHECKING:
    from ..hparams import TrainingArguments
    from .stage import RunArguments


ELSEWHERE = frozenset(
    {
        "resume_from_checkpoint",  # run_plan.py decides
        "neftune_noise_alpha",  # callbacks/neftune.py knows how long a document is
        "activation_checkpointing",  # load_model switches it on, as disable_gradient_checkpointing says
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "use_liger_kernel",  # workflow.py, before the check that documents cannot see each other
        "liger_kernel_config",
    }
)


def to_hf_arguments(arguments: "RunArguments", facts: DeviceFacts | None = None) -> Seq2SeqTrainingArguments:
    """Return what the Trainer takes; a combination that transformers refuses is a UserError with its reason."""
    facts = facts or device_facts()
    training, finetuning = arguments.training, arguments.finetuning
    if training.push_to_hub and "checkpoint" in training.hub_strategy:
        raise UserError(
            f"hub_strategy {training.hub_strategy} (uploading whole checkpoints) is not supported: use end, or "
            "every_save, which uploads the model at each save."
        )
    dtypes = choose_dtype(training_flags(training, finetuning), facts)
    values = {**_same_names(training), **_decided(arguments, dtypes, facts)}
    try:
        return Seq2SeqTrainingArguments(**values)
    except ValueError as error:
        raise UserError(f"transformers refuses these training arguments: {error}") from error


def _same_names(training: "TrainingArguments") -> dict[str, Any]:
    """Copy the keys that both sides have; None means that transformers' own default holds."""
    values: dict[str, Any] = {}
    for item in fields(Seq2SeqTrainingArguments):
        value = getattr(training, item.name, None)
        if item.init and value is not None and item.name not in ELSEWHERE:
            values[item.name] = list(value) if isinstance(value, tuple) else value
    return values


def _decided(arguments: "RunArguments", dtypes: DtypeChoice, facts: DeviceFacts) -> dict[str, Any]:
    training = arguments.training
    values: dict[str, Any] = {
        "bf16": dtypes.autocast == "bf16",
        "fp16": dtypes.autocast == "fp16",
        "use_cpu": training.use_cpu or facts.kind == "cpu",
        "remove_unused_columns": False,  # the collators know what they need
        "label_names": ["labels"],
        "enable_jit_checkpoint": False,  # callbacks/interrupt.py answers SIGTERM
        "generation_max_length": training.generation_max_length or arguments.data.cutoff_len,
    }
    if training.ddp_find_unused_parameters is None:
        values["ddp_find_unused_parameters"] = False  # every trained weight of a decoder takes part in every step
    return values
