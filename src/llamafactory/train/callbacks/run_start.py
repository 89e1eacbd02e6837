"""The first thing in a run: its settings and its folder are put in order."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...data.batch_plan import BatchSize
from ...extras.logging import get_logger
from ..run_plan import open_folder


logger = get_logger(__name__)


class RunStart(TrainerCallback):
    """Puts the settings of this run and the folder in order before the first step."""

    def __init__(self, batch_limit: BatchSize | None = None) -> None:
        self._max_tokens = batch_limit.max_tokens if batch_limit else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # a resumed state brings the intervals of the earlier run
        if state.is_world_process_zero:
            open_folder(Path(args.output_dir), state.global_step)
            num_batches = args.gradient_accumulation_steps * args.world_size
            each = f"{args.per_device_train_batch_size * num_batches} rows"
            if self._max_tokens is not None:
                each = f"as many rows as fit into {num_batches} x {self._max_tokens} tokens"
            done = f", {state.global_step} of them done" if state.global_step else ""
            logger.info(f"Training: {state.max_steps} updates of {each}{done}.")
