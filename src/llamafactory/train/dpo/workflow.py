"""The row of preference tuning on pairs, and its entry point."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...ops.preference import PREFERENCE_LOSSES
from ..answers import AnswerCollator
from ..collation import pair_collator as shared_prompts
from ..collation import row_collator
from ..objective import Objective
from ..reference import make_reference, silence_dropout
from ..reference_cache import annotate_rows
from ..stage import RunArguments, Stage, StageContext
from ..workflow import entry_point
from .objective import PreferenceObjective, count_pairs, pair_survey, preference_objective


if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerCallback


def pair_collator(context: StageContext) -> AnswerCollator:
    """Put all better answers of a batch first, then all worse ones; their prompt is there once where models allow it.

    The reference reads the same batches. It is a model of the policy's kind unless the user named another one.
    """
    names_other = context.arguments.finetuning.ref_model is not None
    collate = row_collator(context) if names_other else shared_prompts(context)
    return AnswerCollator(collate, ("chosen_", "rejected_"))


def pair_reference(context: StageContext) -> "dict[str, nn.Module]":
    """Make the reference of a loss that has one."""
    silence_dropout(context.model)
    finetuning = context.arguments.finetuning
    is_asked = PREFERENCE_LOSSES.get(finetuning.pref_loss).has_reference and not finetuning.precompute_ref_logps
    return make_reference(context) if is_asked else {}


def baseline_callbacks(objective: Objective) -> "Sequence[TrainerCallback]":
    """Return what the Trainer has to tell of the end of a step, and to save."""
    baseline = objective.baseline if isinstance(objective, PreferenceObjective) else None
    return [] if baseline is None else [baseline]


def check_loss(arguments: RunArguments) -> None:
    """Name the known losses before anything is loaded, should the asked one be unknown."""
    PREFERENCE_LOSSES.get(arguments.finetuning.pref_loss)


def annotate_pairs(context: StageContext, rows: Any) -> Any:
    """Add the words of the reference to the rows, where that was asked for."""
    if not context.arguments.finetuning.precompute_ref_logps:
        return rows
    return annotate_rows(context, rows, [pair_collator(context)])


STAGE = Stage(
    name="dpo",
    title="preference tuning on pairs",
    dataset="dpo",
    collator=pair_collator,
    objective=preference_objective,
    weigh=count_pairs,
    helpers=pair_reference,
    survey=pair_survey,
    callbacks=baseline_callbacks,
    check=check_loss,
    annotate=annotate_pairs,
    loss_may_be_zero=True,
    card_keys=("pref_loss", "pref_beta", "pref_ftx", "pref_bco_weight", "dpo_label_smoothing", "ld_alpha"),
    plots=("loss", "eval_loss", "rewards/accuracies", "rewards/margins"),
)

run_dpo = entry_point(STAGE)
