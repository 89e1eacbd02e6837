"""The answer of the command `plan` as HTML."""

from collections.abc import Mapping
from typing import Any

from .markup import table


def show_plan(plan: Mapping[str, Any], language: str) -> str:
    """Return the estimate as a table: whatever figures the command gives, by name."""
    return table(("", ""), list(_flat(plan)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{key} ")
        elif not isinstance(value, list):
            rows.append((name, f"{value:,.4g}" if isinstance(value, float) else str(value)))
    return rows
