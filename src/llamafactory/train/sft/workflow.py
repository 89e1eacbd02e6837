"""The row of supervised fine-tuning, and its entry point."""

from ..collation import row_collator
from ..stage import Stage
from ..workflow import entry_point
from .metric import perplexity
from .objective import count_supervised, supervised_helpers, supervised_objective
from .predictor import answer_predictor, check_prediction


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

run_sft = entry_point(STAGE)
