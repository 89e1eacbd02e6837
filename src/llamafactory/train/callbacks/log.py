"""trainer_log.jsonl: one line per log, for people and for the web page that follows a run."""

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import has_length

from ...extras.constants import TRAINER_LOG
from ..checkpoints import write_durably
from ..meter import LossMeter


EVERY_PREDICTION_STEPS = 5
_RENAMED = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "predict_loss": "predict_loss",
    "reward": "reward",
    "rewards/accuracies": "accuracy",
    "learning_rate": "lr",
    "epoch": "epoch",
    **{name: name for name in ("grad_norm", "rewards/margins", "rewards/chosen", "rewards/rejected", "kl", "entropy")},
}


class LogCallback(TrainerCallback):
    """Appends to trainer_log.jsonl; a resumed run goes on where its checkpoint was, a fresh one starts the file."""

    def __init__(self, meter: LossMeter | None = None, *, record_vram: bool = False) -> None:
        self._meter = meter
        self._record_vram = record_vram
        self._is_training = False
        self._begin(first=0, total=0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = True
        self._begin(first=state.global_step, total=state.max_steps)
        self._tokens_before = self._num_tokens(state)
        if state.is_world_process_zero:
            _keep_until(Path(args.output_dir, TRAINER_LOG), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._current = state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and logs is not None and self._total:
            record = {_RENAMED[name]: value for name, value in logs.items() if name in _RENAMED}
            self._write(args, {**self._steps(), **record, **self._times(), **self._throughput(state), **self._vram()})

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self._is_training or not state.is_world_process_zero or not has_length(eval_dataloader):
            return
        if self._total != len(eval_dataloader) or self._current >= self._total:
            self._begin(first=0, total=len(eval_dataloader))
        self._current += 1
        if self._current % EVERY_PREDICTION_STEPS == 0:
            self._write(args, {**self._steps(), **self._times()})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = False
        self._begin(first=0, total=0)

    def _begin(self, first: int, total: int) -> None:
        self._started = time.monotonic()
        self._first = self._current = first
        self._total = total
        self._tokens_before = 0

    def _steps(self) -> dict[str, int]:
        return {"current_steps": self._current, "total_steps": self._total}

    def _times(self) -> dict[str, Any]:
        """Only the steps of this session tell how long a step takes."""
        elapsed = time.monotonic() - self._started
        per_step = elapsed / max(self._current - self._first, 1)
        return {
            "percentage": round(100 * self._current / self._total, 2),
            "elapsed_time": _clock_time(elapsed),
            "remaining_time": _clock_time(per_step * (self._total - self._current)),
        }

    def _throughput(self, state: Any) -> dict[str, float]:
        tokens = self._num_tokens(state) if self._is_training else 0
        if not tokens:
            return {}
        elapsed = max(time.monotonic() - self._started, 1e-6)
        return {"throughput": round((tokens - self._tokens_before) / elapsed, 2), "total_tokens": tokens}

    def _num_tokens(self, state: Any) -> int:
        """Prefer transformers' own count where the user asked for it (`include_num_input_tokens_seen`)."""
        return state.num_input_tokens_seen or (self._meter.num_tokens if self._meter is not None else 0)

    def _vram(self) -> dict[str, float]:
        if not (self._record_vram and torch.cuda.is_available()):
            return {}
        used, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"vram_allocated": round(used / 1024**3, 2), "vram_reserved": round(reserved / 1024**3, 2)}

    @staticmethod
    def _write(args: Any, record: dict[str, Any]) -> None:
        path = Path(args.output_dir, TRAINER_LOG)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: value for name, value in record.items() if value is not None}) + "\n")


def _clock_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines after the step that training goes on from: those steps are done again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _is_from(line, step)]
    if step == 0:
        path.unlink()
    elif kept != lines:
        write_durably(path, "".join(f"{line}\n" for line in kept))


def _is_from(line: str, last_step: int) -> bool:
    try:
        return json.loads(line)["current_steps"] <= last_step
    except (ValueError, KeyError, TypeError):
        return False
