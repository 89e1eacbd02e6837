"""How the rows of a run become batches; collation.py chooses it and makes them."""

from typing import Literal, NamedTuple


class Layout(NamedTuple):
    """How rows become a batch."""

    kind: Literal["padded", "packed", "flat"] = "padded"
    """Padded; packed rows, padded to the longest; or all rows end to end in one."""
    with_bounds: bool = False
    """A flat batch brings the bounds of its documents."""
    is_asked: bool = True
    """The model was asked whether it keeps documents apart; else it is asked when it is wrapped (IsolationCheck)."""


PADDED = Layout()
"""The layout that every model can be trained with."""
