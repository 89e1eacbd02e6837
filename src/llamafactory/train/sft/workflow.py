"""The row of supervised fine-tuning, and its entry point."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from ..collation import row_collator
from ..stage import RunArguments, Stage
from ..workflow import run_stage
from .metric import perplexity
from .objective import count_supervised, supervised_helpers, supervised_objective
from .predictor import answer_predictor, check_prediction


if TYPE_CHECKING:
    from transformers import TrainerCallback


STAGE = Stage(
    name="sft",
    title="supervised fine-tuning",
    dataset="sft",
    collator=row_collator,
    objective=supervised_objective,
    weigh=count_supervised,
    helpers=supervised_helpers,
    predictor=answer_predictor,
    derive=perplexity,
    check=check_prediction,
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
