"""Several optimizers as one: each has weights of its own, the schedule sees one list of groups.

With layer-wise updates every weight has an optimizer, which runs as soon as the weight's gradient is there; so no two
gradients need to exist at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Joint(Optimizer):
    """Steps all its parts; learning rates are set here and handed down."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all weights."""
        self.hand_down()
        for part in self.parts:
            part.step()

    def hand_down(self) -> None:
        """Give the parts the learning rates of now."""
        groups = [group for part in self.parts for group in part.param_groups]
        for own, group in zip(self.param_groups, groups, strict=True):
            group["lr"] = own["lr"]

    def state_dict(self) -> dict[str, Any]:
        """Return the groups, and the states of the parts."""
        return {**super().state_dict(), "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)


class Layerwise(Joint):
    """Updates each weight during the backward pass and drops its gradient; `step` has nothing left to do."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__(parts)
        self._part_of: dict[Tensor, Optimizer] = {
            weight: part for part in self.parts for group in part.param_groups for weight in group["params"]
        }
        self._is_fresh = False
        for weight in self._part_of:
            weight.register_post_accumulate_grad_hook(self._update)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """End a step: the next gradient belongs to the next one."""
        self._is_fresh = False

    @torch.no_grad()
    def _update(self, weight: Tensor) -> None:
        if not self._is_fresh:
            self.hand_down()
            self._is_fresh = True
        part = self._part_of[weight]
        part.step()
        part.zero_grad()
