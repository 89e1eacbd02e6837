"""The row of preference tuning on marked answers, and its entry point."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from ..answers import answer_collator
from ..reference import make_reference, silence_dropout
from ..reference_cache import annotate_rows
from ..stage import RunArguments, Stage, StageContext
from ..workflow import run_stage
from .objective import MISMATCHED, DriftSurvey, MarkedCollator, count_rows, marked_objective


if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerCallback


def marked_collator(context: StageContext) -> MarkedCollator:
    """Put the answers into one batch, and the mismatched ones into another."""
    return MarkedCollator(answer_collator(context, ("",)), answer_collator(context, (MISMATCHED,)))


def marked_reference(context: StageContext) -> "dict[str, nn.Module]":
    """Make the reference."""
    silence_dropout(context.model)
    return {} if context.arguments.finetuning.precompute_ref_logps else make_reference(context)


def annotate_marked(context: StageContext, rows: Any) -> Any:
    """Add the words of the reference to the rows, where that was asked for."""
    if not context.arguments.finetuning.precompute_ref_logps:
        return rows
    return annotate_rows(context, rows, [marked_collator(context).answers, marked_collator(context).mismatched])


STAGE = Stage(
    name="kto",
    title="preference tuning on marked answers (KTO)",
    dataset="kto",
    collator=marked_collator,
    objective=marked_objective,
    weigh=count_rows,
    helpers=marked_reference,
    survey=lambda context: DriftSurvey(),
    annotate=annotate_marked,
    loss_may_be_zero=True,
    card_keys=("pref_beta", "pref_ftx", "kto_chosen_weight", "kto_rejected_weight"),
    plots=("loss", "eval_loss", "rewards/chosen", "rewards/margins"),
)


def run_kto(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: "Sequence[TrainerCallback] | None" = None,
) -> None:
    """Run preference tuning on marked answers with these arguments."""
    arguments = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
    run_stage(STAGE, arguments, callbacks)
