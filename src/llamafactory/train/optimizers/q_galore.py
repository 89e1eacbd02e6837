"""Q-GaLore: GaLore with weights in 8 bits and directions in 4, found again less often (arXiv 2407.08296).

A weight is taken off its grid, moved, and put onto a new grid by chance rounding, whose mean is right. Where the
directions of a layer have resembled the ones before `queue_size` times in a row, its interval doubles.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .adam import decay_weight
from .eight_bits import BITS, EightBitLinear
from .galore import Galore, GaloreSettings
from .grid import Grid, from_grid, to_grid
from .projection import Projection, main_directions
from .recipe import gradient_of, seed_of


DIRECTION_BITS = 4
SIDES = ("left_MR", "right_NR")


class LazySettings(NamedTuple):
    """When an interval doubles, and where the chance of rounding comes from."""

    cos_threshold: float
    queue_size: int
    seed: int


class QGalore(Galore):
    """GaLore on layers that keep their weights in 8 bits."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        settings: GaloreSettings,
        make_inner: Callable[[list[dict[str, Any]]], Optimizer],
        layers: Mapping[Tensor, EightBitLinear],
        lazy: LazySettings,
    ) -> None:
        super().__init__(groups, settings, make_inner)
        self.layers, self.lazy = layers, lazy
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self._numbers = {weight: number for number, weight in enumerate(weights)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the weights as they are kept: what a checkpoint saves of them is off the grid."""
        return {**super().state_dict(), "weights": [tuple(self.layers[weight].grid()) for weight in self._numbers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        for weight, grid in zip(self._numbers, state_dict["weights"], strict=True):
            self.layers[weight].put(Grid(*grid))

    def _move(self, weight: Tensor, group: dict[str, Any], update: Tensor) -> None:
        whole = self.layers[weight].whole()
        decay_weight(whole, group)
        whole.add_(update, alpha=self.settings.scale)
        seed = seed_of(self.lazy.seed, self._numbers[weight], self.state[weight]["step"])
        self.layers[weight].put(to_grid(whole, BITS, torch.Generator().manual_seed(seed)))

    def _project(self, weight: Tensor) -> Tensor:
        state, wide = self.state[weight], gradient_of(weight).float()
        if not state:
            state |= {"step": 0, "next": 0, "interval": self.settings.interval, "num_alike": 0}
        if state["step"] == state["next"]:
            found = main_directions(wide, self.settings.rank, self.settings.kind)
            if state["step"]:
                self._slow_down(state, self._projection(weight), found)
            state["next"] = state["step"] + state["interval"]
            for side, tensor in found._asdict().items():
                if tensor is not None:
                    grid = to_grid(tensor, DIRECTION_BITS)
                    state |= {f"{side}:{name}": part for name, part in grid._asdict().items()}
                    state[f"{side}:shape"] = tuple(tensor.shape)
        state["step"] += 1
        return self._projection(weight).down(wide)

    def _slow_down(self, state: dict[str, Any], old: Projection, new: Projection) -> None:
        is_alike = likeness(old, new) >= self.lazy.cos_threshold
        state["num_alike"] = state["num_alike"] + 1 if is_alike else 0
        if state["num_alike"] == self.lazy.queue_size:
            state |= {"interval": 2 * state["interval"], "num_alike": 0}

    def _projection(self, weight: Tensor) -> Projection:
        state = self.state[weight]
        sides: list[Tensor | None] = []
        for side in SIDES:
            shape = state.get(f"{side}:shape")
            grid = Grid(*(state[f"{side}:{name}"] for name in Grid._fields)) if shape else None
            sides.append(from_grid(grid, torch.Size(shape), DIRECTION_BITS) if grid else None)
        return Projection(*sides)


def likeness(old: Projection, new: Projection) -> float:
    """Return the cosine of two sets of directions, the smaller one where both sides are projected."""
    pairs = [(one, two) for one, two in zip(old, new, strict=True) if one is not None and two is not None]
    return min(float((one * two).sum() / (one.norm() * two.norm())) for one, two in pairs)
