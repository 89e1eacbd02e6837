"""APOLLO: Adam's scaling of the gradient, measured in a small space (arXiv 2412.05270, algorithm 1).

    R = P G            G the gradient [M, N] with M <= N, P random [R, M], drawn anew every `update_interval` steps
    N = Adam of R
    s = |N[:, j]| / |R[:, j]|         one factor per column; APOLLO-Mini: one for the matrix, at rank 1
    U = G diag(s), kept from growing by more than 1 % a step
    W = W - lr * alpha * U

The paper writes alpha as a root (of 128 for APOLLO-Mini), and so do configurations: alpha is the root of `scale`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...extras.errors import UserError
from .adam import adam_direction, decay_weight
from .joint import Joint, Layerwise
from .projection import Projection, main_directions, random_directions, side_of
from .recipe import AdamSettings, ExactState, Recipe, gradient_of, groups_of, matrices, seed_of


GROWTH = 1.01
"""Largest growth of an update's norm from one step to the next (gamma in the paper)."""
TINY = 1e-8
"""Keeps the factor of a column without a gradient finite."""


class ApolloSettings(NamedTuple):
    """The small space, and what is done with the factors."""

    rank: int
    interval: int
    scale: float
    projection: str
    kind: str
    scale_type: str
    is_scaled_first: bool
    seed: int


class Apollo(ExactState):
    """The update of matrices; keeps two averages of rank x N numbers, and the directions."""

    def __init__(self, groups: list[dict[str, Any]], settings: ApolloSettings, adam: AdamSettings) -> None:
        super().__init__(groups, {})
        self.settings, self.adam = settings, adam

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all matrices."""
        number = 0
        for group in self.param_groups:
            for weight in group["params"]:
                number += 1
                if weight.grad is not None:
                    update = self._update(weight, number)
                    decay_weight(weight, group)
                    weight.add_(update.to(weight.dtype), alpha=-group["lr"])

    def _update(self, weight: Tensor, number: int) -> Tensor:
        state, gradient = self.state[weight], gradient_of(weight)
        wide = gradient.float()
        low = self._projection(state, wide, number).down(wide)
        direction = adam_direction(state, low, self.adam)
        strength = self.settings.scale**0.5
        update = wide * self._factors(direction, low, wide)
        if self.settings.is_scaled_first:
            return limit_growth(state, update * strength)
        return limit_growth(state, update) * strength

    def _projection(self, state: dict[str, Any], gradient: Tensor, number: int) -> Projection:
        done = state.get("step", 0)
        if done % self.settings.interval == 0:
            rank, kind = self.settings.rank, self.settings.kind
            if self.settings.projection == "svd":
                found = main_directions(gradient, rank, kind)
            else:
                seed = seed_of(self.settings.seed, number, done)
                found = random_directions(gradient.shape, rank, kind, seed)
            parts = found._asdict().items()
            state |= {name: part.to(gradient.device) for name, part in parts if part is not None}
        return Projection(state.get("left_MR"), state.get("right_NR"))

    def _factors(self, direction: Tensor, low: Tensor, gradient: Tensor) -> Tensor:
        if self.settings.scale_type == "tensor":
            return direction.norm() / (low.norm() + TINY)
        dim = 0 if side_of(gradient.shape, self.settings.kind) == "left" else 1
        return direction.norm(dim=dim, keepdim=True) / (low.norm(dim=dim, keepdim=True) + TINY)


def limit_growth(state: dict[str, Any], update: Tensor) -> Tensor:
    """Shorten an update whose norm grew by more than GROWTH since the last step; remember its norm."""
    norm = update.norm()
    if "norm" in state:
        shrink = torch.clamp(GROWTH * state["norm"] / (norm + TINY), max=1.0)
        update, norm = update * shrink, norm * shrink
    state["norm"] = norm
    return update


def make_apollo(recipe: Recipe) -> Optimizer:
    """Make APOLLO for the matrices and AdamW for the rest."""
    args = recipe.finetuning
    if not matrices(recipe, args.apollo_target, "apollo_target", args.apollo_rank)[0]:
        raise UserError(
            f"use_apollo: no trained matrix is larger than apollo_rank {args.apollo_rank}; lower it, or train more "
            "layers."
        )
    if not args.apollo_layerwise:
        return _apollo(recipe, recipe.hf.seed)
    parts = [
        _apollo(replace(recipe, weights=(weight,)), recipe.hf.seed + number)
        for number, weight in enumerate(recipe.weights)
    ]
    return Layerwise(parts)


def _apollo(recipe: Recipe, seed: int) -> Optimizer:
    args = recipe.finetuning
    settings = ApolloSettings(
        rank=args.apollo_rank,
        interval=args.apollo_update_interval,
        scale=args.apollo_scale,
        projection=args.apollo_proj,
        kind=args.apollo_proj_type,
        scale_type=args.apollo_scale_type,
        is_scaled_first=args.apollo_scale_front,
        seed=seed,
    )
    projected, others = matrices(recipe, args.apollo_target, "apollo_target", settings.rank)
    parts: list[Optimizer] = []
    if projected:
        parts.append(Apollo(groups_of(projected, recipe.hf.learning_rate), settings, recipe.adam()))
    if others:
        parts.append(recipe.plain(others))
    return parts[0] if len(parts) == 1 else Joint(parts)
