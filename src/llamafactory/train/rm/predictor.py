"""Prediction of a reward model: both scores of each pair."""

from dataclasses import dataclass
from typing import Any

from ..objective import Batch, Models
from .scoring import PairCollator, score_sequences


DECIMALS = 2  # as the established tool writes them


@dataclass(frozen=True)
class ScorePredictor:
    """Writes {"chosen", "rejected"} for each pair."""

    pairs: PairCollator

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Make the same batch as in training."""
        return self.pairs(rows)

    def predict(self, models: Models, batch: Batch) -> list[dict[str, Any]]:
        """Return both scores of each pair."""
        chosen, rejected = score_sequences(models.policy, batch).chunk(2)
        pairs = zip(chosen.tolist(), rejected.tolist(), strict=True)
        return [{"chosen": better, "rejected": worse} for better, worse in pairs]

    def measure(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Return the share of pairs in the right order (a tie counts half), and round the scores for the file."""
        hits = [0.5 + 0.5 * _sign(record["chosen"] - record["rejected"]) for record in records]
        for record in records:
            record.update({name: round(score, DECIMALS) for name, score in record.items()})
        return {"accuracy": sum(hits) / max(len(hits), 1)}


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
