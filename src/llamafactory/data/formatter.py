"""Slots: how one part of a template (a user turn, the tool list) becomes text and control tokens.

A slot is literal text, which may hold `{{content}}`-like places, or `{"special": "bos_token"}`, or `{"token": "X"}`.
A slot is cut at its places once, when it is made; what is put into them is never looked at, so a user who types
`{{content}}` gets just that. Every piece remembers whether it is the template's own text or content: only the
template's own text may become control tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

from .conversation import RowDropped
from .tool_utils import TOOL_FORMATS, FunctionCall, parse_calls, parse_tools


Slot: TypeAlias = str | Mapping[str, str]
PLACE = re.compile(r"\{\{(\w+)\}\}")
PLACE_NAMES = frozenset({"content", "idx"})
CALL_WORDS = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)


class Piece(NamedTuple):
    """A stretch of rendered text. special: text names one of the tokenizer's tokens (eos_token); token: it is one."""

    text: str
    kind: Literal["literal", "content", "special", "token"] = "literal"


class Place(NamedTuple):
    """Where a value goes, inside a slot."""

    name: str


@dataclass(frozen=True)
class Formatter:
    """Slots and what fills them."""

    slots: Sequence[Slot] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.slots))
        unknown = {part.name for part in self.parts if isinstance(part, Place)} - PLACE_NAMES
        if unknown:
            raise ValueError(f"A slot may hold {{{{content}}}} and {{{{idx}}}}, not {sorted(unknown)}: {self.slots}")

    @cached_property
    def cut_slots(self) -> tuple[tuple[Piece | Place, ...], ...]:
        """Every slot, cut at its places."""
        return tuple(cut_slot(slot) for slot in self.slots)

    @cached_property
    def parts(self) -> tuple[Piece | Place, ...]:
        """The cut slots in one row."""
        return tuple(part for slot in self.cut_slots for part in slot)

    def pieces(self, **values: str) -> list[Piece]:
        """Fill the places with values, which count as content."""
        return fill_places(self.parts, self.fillings(values))

    def apply(self, **values: str) -> list[Slot]:
        """Return the filled slots, one for one, in the shape in which slots are written."""
        fillings = self.fillings(values)
        return [
            "".join(piece.text for piece in fill_places(parts, fillings)) if isinstance(slot, str) else slot
            for slot, parts in zip(self.slots, self.cut_slots, strict=True)
        ]

    def fillings(self, values: Mapping[str, str]) -> dict[str, list[Piece]]:
        """Return what goes into each place."""
        return {name: [Piece(value, "content")] for name, value in values.items()}


@dataclass(frozen=True)
class EmptyFormatter(Formatter):
    """Slots without places: a prefix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(isinstance(part, Place) for part in self.parts):
            raise ValueError(f"This part of a template takes no {{{{content}}}}: {self.slots}")


@dataclass(frozen=True)
class StringFormatter(Formatter):
    """Slots that take text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if Place("content") not in self.parts:
            raise ValueError(f"This part of a template needs a {{{{content}}}}: {self.slots}")


@dataclass(frozen=True)
class FunctionFormatter(StringFormatter):
    """Slots that take tool calls: the content is JSON, the text is in the template's own call syntax."""

    slots: Sequence[Slot] = ("{{content}}",)
    tool_format: str = "default"

    def fillings(self, values: Mapping[str, str]) -> dict[str, list[Piece]]:
        """Put the calls into the syntax; text before them stays in front."""
        thought, calls = split_calls(values["content"])
        text = thought + TOOL_FORMATS.get(self.tool_format).render_calls(calls)
        return super().fillings({**values, "content": text})


@dataclass(frozen=True)
class ToolFormatter(Formatter):
    """The list of tools as the system prompt shows it, and the way back from a model's answer to calls."""

    tool_format: str = "default"

    def pieces(self, **values: str) -> list[Piece]:
        """Describe the tools given as a JSON list in `content`; no tools give no pieces."""
        return [Piece(text, "content") for text in self.apply(**values) if isinstance(text, str) and text]

    def apply(self, **values: str) -> list[Slot]:
        """Return the description as one slot; it is empty when there are no tools."""
        tools = parse_tools(values["content"])
        return [TOOL_FORMATS.get(self.tool_format).render_tools(tools) if tools else ""]

    def extract(self, content: str) -> str | list[FunctionCall]:
        """Read tool calls out of what a model wrote; text without well-formed calls comes back as it is."""
        return TOOL_FORMATS.get(self.tool_format).parse(content) or content


def cut_slot(slot: Slot) -> tuple[Piece | Place, ...]:
    """Cut one slot into literal pieces and places."""
    if not isinstance(slot, str):
        (kind, text), *more = slot.items()
        if more or kind not in ("special", "token"):
            raise ValueError(f'A slot is text, {{"special": "eos_token"}} or {{"token": "X"}}, not {dict(slot)}')
        return (Piece(text, "special" if kind == "special" else "token"),)

    halves = PLACE.split(slot)  # text, name, text, name, ..., text
    parts = [Place(half) if index % 2 else Piece(half) for index, half in enumerate(halves)]
    return tuple(part for part in parts if isinstance(part, Place) or part.text)


def fill_places(parts: Sequence[Piece | Place], fillings: Mapping[str, list[Piece]]) -> list[Piece]:
    """Put the fillings into the places."""
    filled: list[Piece] = []
    for part in parts:
        filled.extend([part] if isinstance(part, Piece) else fillings[part.name])
    return filled


def split_calls(content: str) -> tuple[str, list[FunctionCall]]:
    """Split the content of a function turn into the text in front and the calls, which are written as JSON."""
    wrapped = CALL_WORDS.findall(content)
    if wrapped:
        thought = content[: content.index("<tool_call>")]
    else:
        thought = "".join(THOUGHT.findall(content))
        wrapped = [content[len(thought) :]]
    try:
        return thought, [call for body in wrapped for call in parse_calls(body)]
    except ValueError:
        raise RowDropped("a function turn is not JSON with name and arguments") from None
