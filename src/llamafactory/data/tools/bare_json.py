"""Calls as bare JSON, without tags: Llama 3 and 4, Mistral up to v3 (whose tag is part of the template's slot)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from ..pieces import Piece, own, typed
from .calls import FunctionCall, Tool, as_list, dump, load_at, read_call
from .tool_format import Block, ToolFormat, declare


START = re.compile(
    r"(?:(?m:^)|(?<=>)|(?:\[TOOL_CALLS\]|<\|python_tag\|>)\s*)[ \t]*"
    r'(?=(?:\[\s*)?\{\s*"(?:name|type|id|parameters|arguments)")'
)


@dataclass(frozen=True, kw_only=True)
class BareJsonFormat(ToolFormat):
    """One object, or a list of them; the whole rest of the answer."""

    arguments_key: str
    is_list: bool
    """A single call stands in a list too."""

    def call_pieces(self, calls: Sequence[FunctionCall], tools: Sequence[Tool] = ()) -> list[Piece]:
        """Write one object, or a list of them."""
        pieces: list[Piece] = []
        for call in calls:
            pieces += [own(", " if pieces else ""), own('{"name": '), typed(dump(call.name))]
            pieces += [own(f', "{self.arguments_key}": '), typed(call.arguments), own("}")]
        return [own("["), *pieces, own("]")] if self.is_list or len(calls) > 1 else pieces

    def find_calls(self, text: str, tools: Sequence[Tool]) -> Iterable[Block]:
        """Read the first JSON text that stands at the start of a line, up to the end of the answer."""
        match = START.search(text)
        if match is None:
            return []
        value, end = load_at(text, match.end())
        items = as_list(value)
        if text[end:].strip() or not items or not all(isinstance(item, dict) for item in items):
            raise ValueError("not calls")
        keys = (self.arguments_key, "arguments", "parameters")
        calls = [read_call(item.get("name"), next((item[key] for key in keys if key in item), None)) for item in items]
        return [Block(match.start(), end, calls)]


@dataclass(frozen=True, kw_only=True)
class Llama3Format(BareJsonFormat):
    """Llama 3.1's description of tools, which begins with the date."""

    arguments_key: str = "parameters"
    is_list: bool = False
    day: date | None = None
    """The day that the text names; None: the day of preparation, that is the day on which the text is rendered."""

    def tool_pieces(self, tools: Sequence[Tool], has_system: bool = False) -> list[Piece]:
        """List the tools as indented JSON."""
        day = self.day or date.today()
        named_day = f"{day.day:02d} {MONTHS[day.month - 1]} {day.year}"
        listed = "".join(dump(declare(tool), indent=4) + "\n\n" for tool in tools)
        return [
            own("\n\n" if has_system else ""),
            own(
                f"Cutting Knowledge Date: December 2023\nToday Date: {named_day}\n\n"
                "You have access to the following functions. To call a function, please respond with JSON for a "
                'function call. Respond in the format {"name": function name, "parameters": dictionary of argument '
                "name and its value}. Do not use variables.\n\n"
            ),
            typed(listed),
        ]


@dataclass(frozen=True, kw_only=True)
class MistralFormat(BareJsonFormat):
    """Mistral's list of tools between control tokens."""

    arguments_key: str = "arguments"
    is_list: bool = True

    def tool_pieces(self, tools: Sequence[Tool], has_system: bool = False) -> list[Piece]:
        """List the tools as JSON."""
        listed = dump([declare(tool) for tool in tools])
        return [own("[AVAILABLE_TOOLS] "), typed(listed), own("[/AVAILABLE_TOOLS]")]


# English whatever the locale, unlike strftime.
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LLAMA3 = Llama3Format()
MISTRAL = MistralFormat()
