"""What each `finetuning_type` can do: one table, read by rules, loading code, docs and (later) the board."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .tables import load_table


Kind = Literal["weights", "layers", "prompt"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of methods.toml, where the fields are explained."""

    name: str
    title: str
    kind: Kind
    build: str
    count: str
    peft: str = ""
    paper: str = ""
    stages: tuple[str, ...] = ()
    why: str = ""
    unmerged: str = ""
    quantized: bool = False
    sharded: bool = True
    neutral: bool = True

    @property
    def is_adapter(self) -> bool:
        """Whether the model stays as it is and something small is saved beside it."""
        return self.kind != "weights"

    @property
    def merges(self) -> bool:
        """Whether it can become plain weights."""
        return not self.unmerged


@functools.cache
def tuning_methods() -> Mapping[str, Method]:
    """Return the table by the words of finetuning_type."""
    rows = load_table("methods.toml")
    found: dict[str, Method] = {}
    for name, row in rows.items():
        values: dict[str, Any] = {**row, "stages": tuple(row.get("stages", ()))}
        found[name] = Method(name=name, **values)
    return found


def method_of_adapter(peft_type: str) -> Method | None:
    """Return the row of a saved adapter by the type in its configuration; None for one that is not in the table."""
    return next((row for row in tuning_methods().values() if row.peft and row.peft == peft_type), None)
