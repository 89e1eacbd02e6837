"""GaLore: gradients are projected to a low rank, and any optimizer works in that small space (arXiv 2403.03507).

    R = P^T G        G the gradient [M, N], P its R main directions, found again every `update_interval` steps
    N = what the inner optimizer makes of R
    W = W - lr * scale * P N

What the inner optimizer keeps has the size of R. Its averages go on when the directions change, as in the paper.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .adam import decay_weight
from .projection import Projection, main_directions, side_of
from .recipe import ExactState, gradient_of


class GaloreSettings(NamedTuple):
    """The paper's r, T and alpha, and the side that is projected."""

    rank: int
    interval: int
    scale: float
    kind: str


class Galore(ExactState):
    """Runs an optimizer on small stand-ins of the weights, and carries their steps over."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        settings: GaloreSettings,
        make_inner: Callable[[list[dict[str, Any]]], Optimizer],
    ) -> None:
        super().__init__(groups, {})
        self.settings = settings
        stand_ins = [[self._stand_in(weight) for weight in group["params"]] for group in self.param_groups]
        self.inner = make_inner(
            [
                {"params": small, "lr": group["lr"], "weight_decay": 0.0}
                for small, group in zip(stand_ins, self.param_groups, strict=True)
            ]
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Project, let the inner optimizer step from zero, and add its step."""
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner["lr"] = group["lr"]
            for weight, small in zip(group["params"], inner["params"], strict=True):
                small.zero_()
                small.grad = None if weight.grad is None else self._project(weight)
        self.inner.step()
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            for weight, small in zip(group["params"], inner["params"], strict=True):
                if small.grad is not None:
                    self._move(weight, group, self._projection(weight).up(small))
                    small.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the directions, and the state of the inner optimizer."""
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self.inner.load_state_dict(state_dict["inner"])

    def _move(self, weight: Tensor, group: dict[str, Any], update: Tensor) -> None:
        decay_weight(weight, group)
        weight.add_(update.to(weight.dtype), alpha=self.settings.scale)

    def _project(self, weight: Tensor) -> Tensor:
        state, gradient = self.state[weight], gradient_of(weight)
        wide = gradient.float()
        if state.setdefault("step", 0) % self.settings.interval == 0:
            found = main_directions(wide, self.settings.rank, self.settings.kind)
            state |= {name: part for name, part in found._asdict().items() if part is not None}
        state["step"] += 1
        return self._projection(weight).down(wide)

    def _projection(self, weight: Tensor) -> Projection:
        state = self.state[weight]
        return Projection(state.get("left_MR"), state.get("right_NR"))

    def _stand_in(self, weight: Tensor) -> nn.Parameter:
        height, width = weight.shape
        if self.settings.kind == "full":
            height = width = self.settings.rank
        elif side_of(weight.shape, self.settings.kind) == "left":
            height = self.settings.rank
        else:
            width = self.settings.rank
        return nn.Parameter(torch.zeros(height, width, device=weight.device))
