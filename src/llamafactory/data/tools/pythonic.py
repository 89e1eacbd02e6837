"""Calls as Python writes them: LFM 2."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..pieces import Piece, own, typed
from .calls import FunctionCall, Tool, dump, read_call
from .literals import PythonReader
from .tool_format import Block, ToolFormat, check_names


NAME = re.compile(r"[^\s,:=(){}\[\]\"']+")


@dataclass(frozen=True, kw_only=True)
class PythonicFormat(ToolFormat):
    """`[name(key=value), ...]` between control tokens."""

    opening: str
    closing: str
    lead: str
    tool_marks: tuple[str, str]

    def tool_pieces(self, tools: Sequence[Tool], has_system: bool = False) -> list[Piece]:
        """List the tools as JSON between control tokens."""
        before, after = self.tool_marks
        return [own((self.lead if has_system else "") + before), typed(dump(list(tools))), own(after)]

    def call_pieces(self, calls: Sequence[FunctionCall], tools: Sequence[Tool] = ()) -> list[Piece]:
        """Write the calls as a list."""
        texts: list[str] = []
        for call in calls:
            values = call.values
            check_names([call.name, *values], NAME)
            texts.append(f"{call.name}({', '.join(f'{key}={write_python(value)}' for key, value in values.items())})")
        return [own(f"{self.opening}["), typed(", ".join(texts)), own(f"]{self.closing}")]

    def find_calls(self, text: str, tools: Sequence[Tool]) -> Iterable[Block]:
        """Read every list between the tokens."""
        place = 0
        while (start := text.find(self.opening, place)) >= 0:
            reader = CallReader(text, start + len(self.opening))
            calls = reader.items("[", "]", reader.call)
            reader.take(self.closing)
            place = reader.place
            yield Block(start, place, calls)


class CallReader(PythonReader):
    """Reads calls too."""

    def call(self) -> FunctionCall:
        """Read one call with arguments by name."""
        name = self.match(NAME).group()
        return read_call(name, dict(self.items("(", ")", self.argument)))

    def argument(self) -> tuple[str, Any]:
        """Read one argument."""
        name = self.match(NAME).group()
        self.take("=")
        return name, self.value()


def write_python(value: Any) -> str:
    """Write a JSON value as Python does, with JSON's string escapes, all of which Python knows."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dump(key)}: {write_python(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(write_python(item) for item in value) + "]"
    return str(value) if value is None or isinstance(value, bool) else dump(value)


LFM2 = PythonicFormat(
    opening="<|tool_call_start|>",
    closing="<|tool_call_end|>",
    text_joint="",
    lead="\n",
    tool_marks=("List of tools: <|tool_list_start|>", "<|tool_list_end|>"),
)
