"""Thoughts of reasoning models: how they are written, which of them stay, and what stands for one that is missing.

History, that is answers before the last question, loses its thoughts as in the families' own Jinja templates; answers
from the last question on, so every step of a tool chain that is still going, keep theirs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from .formatter import Piece, Place


COMMON_WORDS = ("<think>", "</think>")


class Standing(NamedTuple):
    """Where an answer stands in its conversation."""

    is_history: bool  # a question follows
    is_last: bool  # nothing follows


@dataclass(frozen=True)
class Thinking:
    """How one family writes thoughts."""

    words: tuple[str, str]
    """What stands before and behind a thought."""
    empty: str | None = None
    """An empty thought; None is the two words."""
    fill: Literal["last", "active", "every"] = "active"
    """Which answers without a thought get an empty one: the last, those since the last question, or all."""

    @cached_property
    def empty_thought(self) -> str:
        """The text of an empty thought."""
        return "".join(self.words) if self.empty is None else self.empty

    @cached_property
    def marks(self) -> tuple[tuple[str, str], ...]:
        """What thoughts in data are found by: the family's own words, and the common ones, so that data can move."""
        own = (self.words[0].strip("\n"), self.words[1].strip("\n"))
        return tuple(dict.fromkeys((own, COMMON_WORDS)))

    def split(self, content: str) -> tuple[str, str]:
        """Split an answer into its thought ("" when there is none) and the rest."""
        text = content.lstrip()
        for start, end in self.marks:
            if text.startswith(start) and end in text:
                thought, rest = text[len(start) :].split(end, 1)
                return thought.strip("\n"), rest.lstrip("\n")
        return "", content

    def write(self, thought: str) -> list[Piece]:
        """Write a thought; its words may be control tokens, what is in it may not."""
        return [Piece(self.words[0]), Piece(thought, "content"), Piece(self.words[1])]

    def fills(self, standing: Standing) -> bool:
        """Tell whether an answer without a thought gets an empty one."""
        return self.fill == "every" or (standing.is_last if self.fill == "last" else not standing.is_history)


def strip_lead(parts: tuple[Piece | Place, ...], lead: tuple[Piece, ...]) -> tuple[Piece | Place, ...]:
    """Take the lead away when the parts start with it."""
    return parts[len(lead) :] if parts[: len(lead)] == lead else parts
