"""What a stage computes: sums and weights, never means.

An objective returns the sum of its losses and the number of units (supervised tokens, pairs, rows) they sum over.
The driver adds up the weights of all micro-batches and ranks of one optimizer step and divides once, so that the
update does not depend on how a step was cut into batches.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


Batch = dict[str, Any]
"""One micro-batch as the stage's collator made it: tensors by name, and whatever else the objective needs."""


class MetricSum(NamedTuple):
    """A metric as a ratio of two sums, so that batches and ranks can be added up."""

    total: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class LossSum:
    """The outcome of one micro-batch; everything stays on the device."""

    total: Tensor
    """Sum of the losses; carries the gradient."""
    weight: Tensor
    """Number of units that `total` sums over."""
    metrics: Mapping[str, MetricSum] = field(default_factory=dict[str, MetricSum])
    """Detached sums; the same names in every batch and on every rank."""

    def emptied(self) -> "LossSum":
        """Return zeros that still hang on the model: every rank takes part in the backward pass of a filler."""
        metrics = {
            name: MetricSum(torch.zeros_like(sums.total), torch.zeros_like(sums.weight))
            for name, sums in self.metrics.items()
        }
        return LossSum(self.total * 0.0, torch.zeros_like(self.weight), metrics)


@dataclass(frozen=True, slots=True)
class Models:
    """The models that an objective may call: the one in training, as the driver wrapped it, and frozen helpers."""

    policy: nn.Module
    helpers: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    """By name, for instance "reference" or "reward"; in evaluation mode and without gradients."""


class Objective(Protocol):
    """A loss as a pure function of models and batch."""

    def __call__(self, models: Models, batch: Batch) -> LossSum: ...


Weigh = Callable[[Batch], Tensor]
"""Counts the units of a batch before the forward pass; equal to the `weight` that the objective returns for it."""


class Survey(Protocol):
    """Looks at all batches that one mean is taken over before the first of them counts.

    That is, the batches of an optimizer step, or those of an evaluation. A loss that compares a row with a mean over
    all rows (KTO) would otherwise depend on how the rows were cut into batches.
    """

    def __call__(
        self, models: Models, batches: Iterable[tuple[Batch, bool]], *, is_training: bool
    ) -> Mapping[str, Any]:
        """Return what is added to every batch; a batch with False is a filler, which takes part and does not count.

        In training it may also leave something in the single batches: the objective gets the same ones.
        """
        ...


class Predictor(Protocol):
    """Turns evaluation rows into predictions: generated answers, scores, ... and says how good they are."""

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Make the batch that `predict` takes."""
        ...

    def predict(self, models: Models, batch: Batch) -> list[dict[str, Any]]:
        """Return one JSON-able record per row of the batch, in the batch's order."""
        ...

    def measure(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Return the metrics of all records together."""
        ...


@dataclass(frozen=True)
class RolloutPlan:
    """How much one rollout gathers, and how much is learned from it."""

    num_prompts: int
    """Prompts that each rank gets for one rollout."""
    num_steps: int = 1
    """Optimizer steps that one pass over a rollout takes."""
    num_passes: int = 1
    """Passes over each rollout."""


class Rollout(Protocol):
    """Turns prompts into the batches that the next optimizer steps learn from (PPO, GRPO).

    It makes `num_steps` times gradient_accumulation_steps batches, the same number on every rank, from the rows that
    `num_prompts` counts. It draws from generators that it seeds from `step`, never from the global ones: the driver
    restores those only after the batches of a resumed step were made.
    """

    @property
    def plan(self) -> RolloutPlan:
        """Fixed for the whole run."""
        ...

    def __call__(self, models: Models, rows: list[dict[str, Any]], step: int) -> list[Batch]:
        """Return the batches; nothing in them carries a gradient."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what later rollouts depend on besides the weights: numbers, texts and tensors."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        ...
