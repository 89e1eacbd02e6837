"""Adds up losses and metrics on the device and reads them once per log.

Between two logs nothing is copied to the host. A logged value is the sum of all totals divided by the sum of all
weights since the last log, over all ranks: the true mean, whatever the sizes of the batches were.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_callback import ExportableState, TrainerCallback

from .objective import Batch, LossSum, MetricSum


AddUp = Callable[[Tensor], Tensor]
"""Sums a vector over all ranks; every rank gets the result."""

LOSS = "loss"
TOKENS = "tokens"


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the widest float that the device adds in."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def count_tokens(batch: Batch) -> Tensor:
    """Count the tokens of a batch without its padding."""
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.sum()
    return torch.tensor(batch["input_ids"].numel(), device=batch["input_ids"].device)


class SumMeter:
    """Running sums by name: two numbers each, total and weight."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor, weight: Tensor) -> None:
        """Add one batch; nothing leaves the device."""
        pair = torch.stack((total.detach(), weight.detach().to(total.dtype))).to(sum_dtype(total.device))
        held = self._sums.get(name)
        self._sums[name] = pair if held is None else held.add_(pair)

    def read(self, add_up: AddUp) -> dict[str, tuple[float, float]]:
        """Return (total, weight) by name over all ranks; the only place that waits for the device."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        rows = add_up(torch.stack([self._sums[name] for name in names])).tolist()
        return {name: (row[0], row[1]) for name, row in zip(names, rows, strict=True)}

    def clear(self) -> None:
        """Forget everything."""
        self._sums.clear()


class LossMeter(TrainerCallback, ExportableState):
    """The training loss of the logging window and of the whole run; both survive a checkpoint.

    It is a callback only so that its sums are saved with the trainer's state and come back on resume: the logged
    curve of a resumed run equals the one of a run that was never stopped.
    """

    def __init__(self, *, skip_nonfinite: bool = False) -> None:
        self._skip_nonfinite = skip_nonfinite
        self._window = SumMeter()
        self._pending: dict[str, tuple[float, float]] = {}  # read from the device, not yet logged; same on all ranks
        self._run: dict[str, tuple[float, float]] = {}
        self._tokens_before = 0

    def add(self, loss: LossSum, tokens: Tensor) -> None:
        """Add one micro-batch; with `skip_nonfinite` a loss that is not a number is left out."""
        total, weight = loss.total.detach(), loss.weight.detach()
        if self._skip_nonfinite:
            is_finite = total.isfinite()
            total, weight = total.where(is_finite, 0.0), weight * is_finite
        self._window.add(LOSS, total, weight)
        self._window.add(TOKENS, tokens, torch.ones_like(tokens))
        for name, metric in loss.metrics.items():
            self._window.add(name, *MetricSum(*metric))

    def settle(self, add_up: AddUp) -> None:
        """Bring the window's sums to the host; called on all ranks before a checkpoint and before a log."""
        _merge(self._pending, self._window.read(add_up))
        self._window.clear()

    def means(self) -> dict[str, float]:
        """Close the logging window and return its means; call `settle` first."""
        means = means_of({name: pair for name, pair in self._pending.items() if name != TOKENS})
        _merge(self._run, self._pending)
        self._pending = {}
        return means

    def run_mean(self, name: str = LOSS) -> float:
        """Return the mean over the whole run up to now, earlier sessions included."""
        pairs = [sums[name] for sums in (self._run, self._pending) if name in sums]
        return ratio(sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))

    @property
    def num_tokens(self) -> int:
        """Tokens without padding that all ranks trained on, up to the last log or checkpoint."""
        return round(sum(sums[TOKENS][0] for sums in (self._run, self._pending) if TOKENS in sums))

    @property
    def session_tokens(self) -> int:
        """The same, without what earlier sessions of a resumed run did."""
        return self.num_tokens - self._tokens_before

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"saved": {"run": self._run, "pending": self._pending}}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved: dict[str, Any] = {}
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}).get("saved", {})
        self._window.clear()
        self._run = {name: (pair[0], pair[1]) for name, pair in saved.get("run", {}).items()}
        self._pending = {name: (pair[0], pair[1]) for name, pair in saved.get("pending", {}).items()}
        self._tokens_before = self.num_tokens


def _merge(sums: dict[str, tuple[float, float]], more: dict[str, tuple[float, float]]) -> None:
    for name, (total, weight) in more.items():
        held = sums.get(name, (0.0, 0.0))
        sums[name] = (held[0] + total, held[1] + weight)


def means_of(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Divide each; a metric of which nothing was counted (no bad answer in sight, say) is left out, the loss never."""
    return {name: ratio(*pair) for name, pair in sums.items() if pair[1] or name == LOSS}


def ratio(total: float, weight: float) -> float:
    """Divide, and say "not a number" where nothing was counted."""
    return total / weight if weight else math.nan
