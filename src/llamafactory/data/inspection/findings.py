"""What a check found: one finding per kind of trouble, with a count and the first places."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .bench import ScannedRow


Severity: TypeAlias = Literal["error", "warning"]
TABLE = Path(__file__).parent / "findings.toml"
MAX_PLACES = 3


@dataclass(frozen=True)
class Kind:
    """One row of findings.toml."""

    severity: Severity
    title: str
    advice: str


@dataclass(frozen=True)
class Place:
    """Where a trouble stands."""

    dataset: str
    side: str
    row: int
    where: str
    note: str = ""


@dataclass
class Finding:
    """A kind of trouble; it grows while rows come in."""

    code: str
    subject: str = ""
    """What tells findings of one kind apart: the reason why rows are dropped, a dataset."""
    count: int = 0
    places: list[Place] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """Severity and words."""
        return load_kinds()[self.code]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self.kind) | asdict(self)


class Findings:
    """All findings of a check."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(self, code: str, row: ScannedRow, note: str = "", *, subject: str = "") -> None:
        """Count a trouble of a row."""
        finding = self._finding(code, subject)
        finding.count += 1
        if len(finding.places) < MAX_PLACES:
            finding.places.append(Place(row.dataset, row.side, row.number, row.where, note))

    def say(self, code: str, subject: str = "") -> None:
        """Count a trouble that stands in no row."""
        self._finding(code, subject).count += 1

    def sorted(self) -> list[Finding]:
        """Return errors first, each kind in the order of findings.toml."""
        order = list(load_kinds())
        found = sorted(self._found.values(), key=lambda finding: order.index(finding.code))
        return sorted(found, key=lambda finding: finding.kind.severity != "error")

    def count(self, severity: Severity) -> int:
        """Return how many findings of a severity there are."""
        return sum(finding.kind.severity == severity for finding in self._found.values())

    def _finding(self, code: str, subject: str) -> Finding:
        return self._found.setdefault((code, subject), Finding(code, subject))


@cache
def load_kinds() -> Mapping[str, Kind]:
    """Read findings.toml."""
    return {code: Kind(**table) for code, table in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()}
