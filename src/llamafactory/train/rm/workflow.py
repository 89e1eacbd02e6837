"""The row of reward modelling, and its entry point."""

from ..collation import row_collator
from ..stage import Stage, StageContext
from ..workflow import entry_point
from .objective import count_pairs, pairwise_objective
from .padding import separate_padding
from .predictor import ScorePredictor
from .scoring import PairCollator, ScoredCollator


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

run_rm = entry_point(STAGE)
