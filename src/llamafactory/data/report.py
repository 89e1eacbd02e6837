"""What became of the rows of a dataset: read, kept, cut, dropped and why, and how much of them is learned."""

from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from .processor import ProcessedRow


@dataclass
class PreparationReport:
    """Counts of one dataset; it grows while rows come in."""

    name: str
    cutoff_len: int
    num_read: int = 0
    num_truncated: int = 0
    num_supervised: int = 0
    num_weighted: int = 0  # rows in which losses are weighed
    num_more: int = 0  # tokens of the shorter sequences of pairs, which `lengths` leaves out
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first row that was dropped for it
    lengths: array = field(default_factory=lambda: array("I"))  # four bytes per row

    def keep(self, row: ProcessedRow) -> None:
        """Count a row that is used."""
        self.num_truncated += row.is_truncated
        self.num_supervised += row.num_supervised
        self.num_weighted += row.weights is not None
        lengths = row.sequence_lengths
        self.lengths.append(max(lengths))
        self.num_more += sum(lengths) - max(lengths)

    def drop(self, reason: object, where: str) -> None:
        """Count a row that is not."""
        self.dropped[str(reason)] += 1
        self.examples.setdefault(str(reason), where)

    def add(self, other: Self) -> None:
        """Count what another process has counted."""
        self.num_read += other.num_read
        self.num_truncated += other.num_truncated
        self.num_supervised += other.num_supervised
        self.dropped.update(other.dropped)
        self.lengths.extend(other.lengths)
        for reason, where in other.examples.items():
            self.examples.setdefault(reason, where)

    @property
    def num_kept(self) -> int:
        """Rows that are used."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of the rows that are used."""
        return sum(self.lengths) + self.num_more

    def percentile(self, share: float) -> int:
        """Return the length that this share of the rows does not exceed; 0 without rows."""
        ordered = sorted(self.lengths)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0

    def describe(self) -> str:
        """Say it in one line."""
        share = self.num_supervised / max(self.num_tokens, 1)
        median, high, longest = (self.percentile(level) for level in (0.5, 0.95, 1))
        return (
            f"{self.name}: {self.num_read} rows read, {self.num_kept} kept, {self.num_truncated} of them cut "
            f"at {self.cutoff_len} tokens, {self.dropped.total()} dropped; {self.num_tokens} tokens, {share:.1%} "
            f"learned; length {median} (median), {high} (95%), {longest} (most)"
        )

    def describe_dropped(self) -> str:
        """Say why rows were dropped, the most frequent reason first; "" when none were."""
        reasons = [
            f"{reason}: {count} (first: {self.examples[reason]})" for reason, count in self.dropped.most_common()
        ]
        return "; ".join(reasons)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**asdict(self), "dropped": dict(self.dropped), "lengths": list(self.lengths)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what to_dict wrote."""
        return cls(**{**values, "dropped": Counter(values["dropped"]), "lengths": array("I", values["lengths"])})
