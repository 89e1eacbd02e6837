"""The row of pre-training, and its entry point.

Its loss is that of supervised fine-tuning where every token is supervised. With packing (its default) the texts are
one stream, cut into blocks of cutoff_len tokens (data/blocks.py); a block is one document, whose first token nobody
predicts, so a stream of N blocks has N targets fewer than tokens. Without packing each text is a row of its own.
"""

from ..collation import row_collator
from ..sft.metric import perplexity
from ..sft.objective import count_supervised, supervised_objective
from ..stage import Stage
from ..workflow import entry_point


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

run_pt = entry_point(STAGE)
