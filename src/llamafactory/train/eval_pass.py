"""What is gathered while an evaluation set is walked over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate.utils import send_to_device

from .meter import LOSS, SumMeter
from .objective import Batch, LossSum, MetricSum, Models, Survey
from .predictions import PredictionStore


@dataclass
class EvalPass:
    """One pass over an evaluation set: sums, or the records of a predictor."""

    num_left: int | None = None
    """Batches still to come that count, the rest are fillers; None counts all."""
    meter: SumMeter = field(default_factory=SumMeter)
    records: list[dict[str, Any]] | None = None
    stride: tuple[int, int] = (0, 1)
    """This rank and the number of ranks: the rank holds rows r, r + num_ranks, ..."""
    store: PredictionStore | None = None
    """Keeps the records on disk as they are made."""
    loader: Any = None
    """Where the batches come from."""
    shared: Mapping[str, Any] | None = None
    """What a survey of all batches found; added to each of them."""

    def add_loss(self, loss: LossSum) -> None:
        """Add the sums of one batch; of a filler only the names, which must be the same on all ranks."""
        is_real = self._counts()
        for name, sums in {LOSS: MetricSum(loss.total, loss.weight), **loss.metrics}.items():
            total, weight = sums if is_real else (torch.zeros_like(sums.total), torch.zeros_like(sums.weight))
            self.meter.add(name, total, weight)

    def add_records(self, records: list[dict[str, Any]]) -> None:
        """Add the predictions of one batch."""
        if not self._counts() or self.records is None:
            return
        if self.store is not None:
            rank, num_ranks = self.stride
            indices = [rank + (len(self.records) + place) * num_ranks for place in range(len(records))]
            self.store.add(indices, records)
        self.records.extend(records)

    def survey(self, look: Survey, models: Models, device: torch.device) -> Mapping[str, Any]:
        """Look at all batches once, before the first of them is measured."""
        if self.shared is None:
            num_real = len(self.loader) if self.num_left is None else self.num_left
            batches = (cast(Batch, send_to_device(batch, device)) for batch in self.loader)
            counted = ((batch, number < num_real) for number, batch in enumerate(batches))
            self.shared = look(models, counted, is_training=False)
        return self.shared

    def _counts(self) -> bool:
        if self.num_left is None:
            return True
        self.num_left -= 1
        return self.num_left >= 0
