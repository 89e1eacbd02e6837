"""Pieces: rendered text that remembers whether it is the template's own or somebody's content.

Only the template's own text may become control tokens.
"""

from typing import Literal, NamedTuple


class Piece(NamedTuple):
    """A stretch of rendered text. special: text names one of the tokenizer's tokens (eos_token); token: it is one."""

    text: str
    kind: Literal["literal", "content", "special", "token"] = "literal"


class Place(NamedTuple):
    """Where a value goes, inside a slot."""

    name: str


def own(text: str) -> Piece:
    """Return text that the template itself writes."""
    return Piece(text)


def typed(text: str) -> Piece:
    """Return text that somebody else wrote: a user, a tool list, a row of data."""
    return Piece(text, "content")


def text_of(pieces: list[Piece]) -> str:
    """Join pieces that are all plain text."""
    return "".join([piece.text for piece in pieces])
