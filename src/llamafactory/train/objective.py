"""What a stage computes: sums and weights, never means.

An objective returns the sum of its losses and the number of units (supervised tokens, pairs, rows) they sum over.
The driver adds up the weights of all micro-batches and ranks of one optimizer step and divides once, so that the
update does not depend on how a step was cut into batches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

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


class Rollout(Protocol):
    """Turns the prompts of one optimizer step into the batches it trains on (PPO, GRPO): as many as it was given.

    A rollout draws from generators that it seeds from `step`, never from the global ones: the driver restores those
    only after the batches of a resumed step were made.
    """

    def __call__(self, models: Models, batches: list[Batch], step: int) -> list[Batch]: ...
