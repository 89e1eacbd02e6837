"""The progress bar of transformers, with one short line per log instead of a dict."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from transformers.trainer_callback import ProgressCallback, TrainerCallback

from ...extras.logging import get_logger


logger = get_logger(__name__)

_SHORT = {"learning_rate": "lr", "grad_norm": "grad", "train_loss": "mean loss"}
_HIDDEN = ("_runtime", "_per_second", "total_flos", "num_input_tokens_seen", "model_preparation_time", "step")


def log_line(logs: Mapping[str, Any], step: int, num_steps: int) -> str:
    """Return one line such as "step 20/100  loss 1.734  grad 0.912  lr 4.5e-05  epoch 0.4"."""
    parts = [f"step {step}/{num_steps}"] if num_steps else []
    for name, value in logs.items():
        if not any(name.endswith(ending) for ending in _HIDDEN):
            parts.append(f"{_SHORT.get(name, name)} {_number(value)}")
    return "  ".join(parts)


class CompactProgress(ProgressCallback):
    """A bar that starts where a resumed run starts and writes short lines."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and state.global_step:
            self.training_bar.initial = self.training_bar.n = self.current_step = state.global_step
            self.training_bar.refresh()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs and state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(log_line(logs, state.global_step, state.max_steps))


class CompactPrinter(TrainerCallback):
    """The same lines where there is no bar (`disable_tqdm`)."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs and state.is_local_process_zero:
            logger.log(logging.INFO, log_line(logs, state.global_step, state.max_steps))


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if value and math.isfinite(value) and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4g}"
