"""Early stopping whose counter survives a resume, whatever patience the resumed run asks for."""

from collections.abc import Mapping
from typing import Any

from transformers.trainer_callback import EarlyStoppingCallback, TrainerCallback

from ...extras.errors import UserError


UNRANKED = ("runtime", "per_second", "epoch")
"""How the names of numbers end that say nothing about the model."""


class RestorePatience(TrainerCallback):
    """Gives an EarlyStoppingCallback the counter that was saved with the checkpoint.

    transformers can restore callbacks by itself (`restore_callback_states_from_checkpoint`), but then the patience of
    the earlier run wins over the one asked for now.
    """

    def __init__(self, early_stopping: EarlyStoppingCallback) -> None:
        self._early_stopping = early_stopping

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
        counter = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        self._early_stopping.early_stopping_patience_counter = counter


def early_stopping_callbacks(patience: int) -> list[TrainerCallback]:
    """Return the callbacks that stop a run after `patience` evaluations without improvement."""
    early_stopping = EarlyStoppingCallback(early_stopping_patience=patience)
    return [early_stopping, RestorePatience(early_stopping)]


def require_best_metric(name: str | None, metrics: Mapping[str, float]) -> None:
    """Refuse an evaluation that did not measure what decides which checkpoint is best."""
    if name is None or f"eval_{name.removeprefix('eval_')}" in metrics:
        return
    known = [metric.removeprefix("eval_") for metric in metrics if not metric.endswith(UNRANKED)]
    raise UserError(
        f"metric_for_best_model: {name} is not measured in this run's evaluations; set it to one of "
        f"{', '.join(sorted(known))}."
    )
