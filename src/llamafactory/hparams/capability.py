"""What a row of a table of methods says about itself: what builds it, what it goes with, and what it needs.

Adapters, optimizers and quantizers are rows. Rules, the support page and the form read them here, without importing
torch: the code behind a row is named, and imported when a run asks for it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One method of its kind."""

    name: str
    title: str
    """A few words for people."""
    build: str
    """The code, as "module:attribute"."""
    stages: tuple[str, ...] = ()
    """The stages that it goes with; none given: all. So for the next two."""
    methods: tuple[str, ...] = ()
    """Values of finetuning_type."""
    devices: tuple[str, ...] = ()
    package: str | None = None
    """The module that must be installed."""
    needs: str | None = None
    """The extra of this package that installs it; None with a `package` for one that is installed apart."""


Row = TypeVar("Row", bound=Capability)


def by_name(rows: Iterable[Row]) -> dict[str, Row]:
    """Index rows by their names."""
    return {row.name: row for row in rows}


def all_or(values: Sequence[str]) -> str:
    """Write a column of a row; one that limits nothing is "all"."""
    return ", ".join(values) or "all"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of the docs."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
