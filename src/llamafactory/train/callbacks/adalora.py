"""AdaLoRA between steps: the ranks move after every update, before its gradients are cleared."""

from typing import Any

from transformers import TrainerCallback

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...model.adapters.adalora import Ranks


logger = get_logger(__name__)


class RankCallback(TrainerCallback):
    """Tells AdaLoRA how long the run is, and lets it cut directions after each step."""

    def __init__(self, ranks: Ranks, start: float, end: float) -> None:
        self._ranks = ranks
        self._start = start
        self._end = end

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        total = state.max_steps
        start, end = count_steps(self._start, total), count_steps(self._end, total)
        if start + end >= total:
            raise UserError(
                f"adalora_start and adalora_end take {start} and {end} steps, which leaves none of this run's {total} "
                "to move the ranks: lower them, or train longer."
            )
        self._ranks.plan(total, start, end)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not getattr(kwargs.get("optimizer"), "step_was_skipped", False):
            self._ranks.update(state.global_step + 1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = self._ranks.kept()
        if kept:
            ranks = sorted(kept.values())
            mean = sum(ranks) / len(ranks)
            logger.info("AdaLoRA: ranks from %s to %s, %.1f in the mean.", ranks[0], ranks[-1], mean)


def count_steps(steps: float, total: int) -> int:
    """Return a number of steps that may be given as a share of the run."""
    return int(steps) if steps >= 1 else int(steps * total)
