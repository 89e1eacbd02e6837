"""What a plug-in looks like: a loss, a metric and a callback of your own, registered under names of your own.

Shapes: K supervised tokens, D hidden, V vocabulary.
"""

from functools import partial
from pathlib import Path

from transformers import TrainerCallback

from llamafactory.data.batch import model_inputs
from llamafactory.model.readout import Readout
from llamafactory.ops.logprobs import linear_log_probs
from llamafactory.train.objective import LossSum, MetricSum
from llamafactory.train.plugins import CALLBACKS, METRICS, OBJECTIVES
from llamafactory.train.sequences import supervised_positions


GAMMA = 2.0


@OBJECTIVES.register("focal")
def make_focal_loss(context):
    """Focal loss (arXiv 1708.02002): tokens that the model already knows count less."""
    return focal_loss


def focal_loss(models, batch):
    """Sum of (1 - p)^gamma * -log p; the trainer divides by the number of supervised tokens of the whole step."""
    positions_K, targets_K = supervised_positions(batch)
    readout = Readout(positions_K, partial(linear_log_probs, targets_K=targets_K))
    logps_K = models.policy(**model_inputs(batch), use_cache=False, readout=readout).logps_K
    weights_K = (1 - logps_K.exp()) ** GAMMA
    count = positions_K.new_tensor(len(positions_K))
    plain = MetricSum(-logps_K.detach().sum(), count)  # every metric is a sum and its weight
    return LossSum((weights_K * -logps_K).sum(), count, {"cross_entropy": plain})


@METRICS.register("exact_match")
def exact_match(records):
    """Share of predictions that equal their label."""
    return {"exact_match": sum(row["predict"] == row["label"] for row in records) / max(len(records), 1)}


@CALLBACKS.register("note")
def make_note(arguments):
    """Write a line into output_dir when training ends."""
    return Note(Path(arguments.training.output_dir) / "note.txt")


class Note(TrainerCallback):
    """Could as well call your scheduler or your chat."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.path.write_text(f"finished at step {state.global_step}\n", encoding="utf-8")
