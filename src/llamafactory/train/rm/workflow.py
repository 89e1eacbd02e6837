"""The row of reward modelling, and its entry point."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from ..collation import row_collator
from ..stage import RunArguments, Stage, StageContext
from ..workflow import run_stage
from .objective import count_pairs, pairwise_objective
from .padding import separate_padding
from .predictor import ScorePredictor
from .scoring import PairCollator, ScoredCollator


if TYPE_CHECKING:
    from transformers import TrainerCallback


def pair_collator(context: StageContext) -> PairCollator:
    """Pad on the right, or lay the answers end to end."""
    separate_padding(context.tokenizer, context.model, context.template.get_stop_token_ids(context.tokenizer))
    return PairCollator(ScoredCollator(row_collator(context)))


STAGE = Stage(
    name="rm",
    title="reward modelling",
    dataset="rm",
    collator=pair_collator,
    objective=lambda context: pairwise_objective,
    weigh=count_pairs,
    predictor=lambda context: ScorePredictor(pair_collator(context)),
    plots=("loss", "accuracy", "eval_loss", "eval_accuracy"),
    head="score",
)


def run_rm(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: "Sequence[TrainerCallback] | None" = None,
) -> None:
    """Run reward modelling with these arguments."""
    arguments = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
    run_stage(STAGE, arguments, callbacks)
