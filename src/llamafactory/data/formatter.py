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
from itertools import islice
from typing import TypeAlias

from .conversation import RowDropped
from .pieces import Piece, Place
from .tools import TOOL_FORMATS, Answer, CallTurn, FunctionCall, parse_calls, parse_tools


Slot: TypeAlias = str | Mapping[str, str]
PLACE = re.compile(r"\{\{(\w+)\}\}")
PLACE_NAMES = frozenset({"content", "idx"})
BARE_CALLS = re.compile(r"(?:\A|\n|(?<=>))[ \t]*(?=[\[{])")
MAX_TRIES = 20  # places at which bare JSON may begin; more are not looked at


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
        """Put the calls into the syntax, text around them kept; `tools` (JSON) tells which arguments are text."""
        tools = parse_tools(values.get("tools", ""))
        pieces = TOOL_FORMATS.get(self.tool_format).turn_pieces(split_calls(values["content"]), tools)
        return {**super().fillings(values), "content": pieces}


@dataclass(frozen=True)
class ToolFormatter(Formatter):
    """The list of tools as the system prompt shows it, and the way back from a model's answer to calls."""

    tool_format: str = "default"

    def pieces(self, **values: str) -> list[Piece]:
        """Describe the tools given as a JSON list in `content`; no tools give no pieces.

        `system` is the system prompt in front of them; some syntaxes need something in between.
        """
        tools = parse_tools(values["content"])
        pieces = TOOL_FORMATS.get(self.tool_format).tool_pieces(tools, bool(values.get("system"))) if tools else []
        return [piece for piece in pieces if piece.text]

    def apply(self, **values: str) -> list[Slot]:
        """Return the description as one slot; it is empty when there are no tools."""
        return ["".join(piece.text for piece in self.pieces(**values))]

    def extract(self, content: str, tools: str = "") -> str | list[FunctionCall]:
        """Read tool calls out of what a model wrote; text without well-formed calls comes back as it is."""
        return self.read(content, tools).calls or content

    def read(self, content: str, tools: str = "") -> Answer:
        """Split what a model wrote into text and calls; the tools (JSON) tell which arguments are text."""
        return TOOL_FORMATS.get(self.tool_format).read(content, parse_tools(tools))


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


def split_calls(content: str) -> CallTurn:
    """Split the content of a function turn into calls, which are written as JSON, and the text around them.

    The calls stand between `<tool_call>` tags, or are the rest of the content from the start of a line on.
    """
    try:
        blocks = list(TOOL_FORMATS.get("qwen").find_calls(content, ()))
    except (ValueError, RecursionError):
        blocks = []
    if blocks:
        calls = [call for block in blocks for call in block.calls]
        return CallTurn(content[: blocks[0].start], calls, content[blocks[-1].end :].strip())
    for match in islice(BARE_CALLS.finditer(content), MAX_TRIES):
        try:
            return CallTurn(content[: match.end()], parse_calls(content[match.end() :]))
        except ValueError:
            continue
    raise RowDropped("a function turn is not JSON with name and arguments")
