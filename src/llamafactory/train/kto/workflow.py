"""The row of preference tuning on marked answers, and its entry point."""

from typing import TYPE_CHECKING, Any

from ..answers import answer_collator
from ..reference import make_reference, silence_dropout
from ..reference_cache import annotate_rows
from ..stage import Stage, StageContext
from ..workflow import entry_point
from .objective import MISMATCHED, DriftSurvey, MarkedCollator, count_rows, marked_objective


if TYPE_CHECKING:
    from torch import nn


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

run_kto = entry_point(STAGE)
