"""BCO's delta: the mean reward of all answers so far.

It is brought up to date once per optimizer step, over all ranks, and a step sees the mean of the steps before it: so
it does not depend on how a step is cut into batches. It survives a checkpoint.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.trainer_callback import ExportableState, TrainerCallback

from ..answers import add_over_ranks
from ..meter import sum_dtype


class RewardBaseline(TrainerCallback, ExportableState):
    """Running mean of rewards; a callback so that the Trainer tells it when a step ends and saves it."""

    def __init__(self) -> None:
        self._total = torch.zeros(2, dtype=torch.float64)  # sum and number, of the steps that are over
        self._step: Tensor | None = None  # the same of the step under way, of this rank

    def mean(self, like: Tensor) -> Tensor:
        """Return the mean of the steps that are over as a number on the device of `like`; 0 before the first."""
        self._total = self._total.to(like.device, sum_dtype(like.device))
        return (self._total[0] / self._total[1].clamp(min=1)).to(like.dtype)

    def add(self, rewards: Tensor) -> None:
        """Add rewards of the step under way."""
        sums = torch.stack((rewards.sum(), torch.full_like(rewards[0], rewards.numel()))).to(sum_dtype(rewards.device))
        self._step = sums if self._step is None else self._step + sums

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the step, on all ranks."""
        step = self._total.new_zeros(2) if self._step is None else self._step
        self._total = self._total.to(step.device, step.dtype) + add_over_ranks(step)
        self._step = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint, or begin anew."""
        saved: dict[str, Any] = {}
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self._total = torch.tensor(saved.get("total", [0.0, 0.0]), dtype=torch.float64)
        self._step = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {"total": self._total.tolist()}}
