"""The row of supervised fine-tuning, and its entry point."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...data.collator import FlatCollator, PackedCollator, PaddingCollator
from ...extras.device import device_facts
from ...hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from ...model.model_utils.attention import attention_implementation
from ..stage import Collator, RunArguments, Stage, StageContext
from ..workflow import run_stage
from .objective import count_supervised, supervised_objective
from .predictor import answer_predictor, check_prediction


if TYPE_CHECKING:
    from transformers import TrainerCallback


def supervised_collator(context: StageContext) -> Collator:
    """Pad on the right; on accelerators to a multiple of 8, which their matrix units like.

    Kernels that take bounds of documents find them in a single row only, so packed rows are laid end to end for them.
    """
    data, multiple = context.arguments.data, None if device_facts().kind == "cpu" else 8
    has_bounds = (attention_implementation(context.arguments.model.flash_attn) or "").startswith("flash")
    if data.padding_free or (data.packing and has_bounds):
        return FlatCollator(context.tokenizer, multiple)
    if data.packing:
        return PackedCollator(context.tokenizer, multiple)
    return PaddingCollator(context.tokenizer, pad_to_multiple_of=multiple)


STAGE = Stage(
    name="sft",
    title="supervised fine-tuning",
    dataset="sft",
    collator=supervised_collator,
    objective=supervised_objective,
    weigh=count_supervised,
    predictor=answer_predictor,
    check=check_prediction,
    joins_rows=lambda data: bool(data.packing) or data.padding_free,
    plots=("loss", "eval_loss", "eval_accuracy"),
)


def run_sft(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: "Sequence[TrainerCallback] | None" = None,
) -> None:
    """Run supervised fine-tuning with these arguments."""
    arguments = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
    run_stage(STAGE, arguments, callbacks)
