"""How much the optimizers that `optim` names keep for a weight; the table is optimizer_states.toml."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .tables import load_table


WHOLE_BELOW = 4096
"""bitsandbytes keeps 32-bit states for tensors with fewer numbers than this."""


@dataclass(frozen=True, kw_only=True)
class StateSize:
    """One row of the table, where the fields are explained."""

    numbers: float
    bytes: float | None = None
    scales: float = 0.0
    whole: bool = False
    factored: bool = False
    copies: float = 0.0

    def of(self, shape: Sequence[int], itemsize: int, *, is_embedding: bool = False) -> int:
        """Return the bytes of the states of one weight."""
        count = math.prod(shape)
        if self.factored:
            return 4 * (sum(count // side for side in shape[-2:]) if len(shape) > 1 else count)
        if self.whole and (is_embedding or count < WHOLE_BELOW):
            return int(self.numbers * 4 * count)
        per_number = itemsize if self.bytes is None else self.bytes
        return int((self.numbers * per_number + self.scales) * count)


@functools.cache
def state_sizes() -> Mapping[str, StateSize]:
    """Return the table by the values of `optim`."""
    return {name: StateSize(**row) for name, row in load_table("optimizer_states.toml").items()}


def state_size(optim: str) -> StateSize:
    """Return the row of an optimizer; one that is not in the table (a plug-in's) is taken for AdamW."""
    return state_sizes().get(optim, StateSize(numbers=2))
