"""The row of pre-training, and its entry point.

Its loss is that of supervised fine-tuning where every token is supervised. With packing (its default) the texts are
one stream, cut into blocks of cutoff_len tokens (data/blocks.py); a block is one document, whose first token nobody
predicts, so a stream of N blocks has N targets fewer than tokens. Without packing each text is a row of its own.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from ..collation import row_collator
from ..sft.metric import perplexity
from ..sft.objective import count_supervised, supervised_objective
from ..stage import RunArguments, Stage
from ..workflow import run_stage


if TYPE_CHECKING:
    from transformers import TrainerCallback


STAGE = Stage(
    name="pt",
    title="pre-training",
    dataset="pt",
    collator=row_collator,
    objective=supervised_objective,
    weigh=count_supervised,
    derive=perplexity,
    plots=("loss", "eval_loss", "eval_perplexity"),
)


def run_pt(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: "Sequence[TrainerCallback] | None" = None,
) -> None:
    """Run pre-training with these arguments."""
    arguments = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
    run_stage(STAGE, arguments, callbacks)
