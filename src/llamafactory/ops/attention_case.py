"""What an attention over documents is given besides the heads. Shapes: N documents."""

from typing import NamedTuple, cast

from torch import Tensor


class Documents(NamedTuple):
    """Where documents begin in the tokens laid end to end."""

    bounds_N: Tensor
    """`cu_seqlens`, int32 of N + 1: the first token of each document, and the end of the last one."""
    longest: int
    """Tokens of the longest document, or more; known on the host, so that nobody waits for the device."""

    def to_list(self) -> list[int]:
        """Return the bounds on the host."""
        return cast("list[int]", self.bounds_N.tolist())  # pyright: ignore[reportUnknownMemberType]


class Scores(NamedTuple):
    """What becomes of the product of a query and a key."""

    scale: float
    """The product is multiplied by it."""
    window: int | None = None
    """A token sees itself and at most `window - 1` tokens before it; None: its whole document up to itself."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap) (Gemma 2, arXiv:2408.00118)."""
    dropout: float = 0.0
    """Share of the attention weights that are left out."""
