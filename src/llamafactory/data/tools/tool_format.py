"""What every tool-call syntax gives: the tools as text, calls as text, and a model's answer as text and calls."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..conversation import RowDropped
from ..pieces import Piece, own, text_of, typed
from .calls import FunctionCall, Tool


THOUGHT_ENDS = ("</think>", "</seed:think>", "<channel|>")


class Block(NamedTuple):
    """A stretch of an answer that holds calls."""

    start: int
    end: int
    calls: list[FunctionCall]


class CallTurn(NamedTuple):
    """A turn of a conversation that calls tools."""

    before: str
    calls: list[FunctionCall]
    after: str = ""


class Answer(NamedTuple):
    """What a model wrote: calls, and the text around them."""

    text: str
    calls: list[FunctionCall]


@dataclass(frozen=True, kw_only=True)
class ToolFormat(ABC):
    """One syntax, both ways: `parse(render_calls(calls)) == calls`."""

    text_joint: str = "\n"
    """What stands between text and the first call; a thought brings its own."""

    @abstractmethod
    def tool_pieces(self, tools: Sequence[Tool], has_system: bool = False) -> list[Piece]:
        """Describe the tools and how to call them; has_system: a system prompt stands in front."""

    @abstractmethod
    def call_pieces(self, calls: Sequence[FunctionCall], tools: Sequence[Tool] = ()) -> list[Piece]:
        """Write the calls as the model should."""

    @abstractmethod
    def find_calls(self, text: str, tools: Sequence[Tool]) -> Iterable[Block]:
        """Find the calls in an answer; ValueError when one is not well formed."""

    def render_tools(self, tools: Sequence[Tool], has_system: bool = False) -> str:
        """Describe the tools, as plain text."""
        return text_of(self.tool_pieces(tools, has_system))

    def render_calls(self, calls: Sequence[FunctionCall], tools: Sequence[Tool] = ()) -> str:
        """Write the calls, as plain text. The tools tell which arguments are text and need no quotes."""
        return text_of(self.call_pieces(calls, tools))

    def turn_pieces(self, turn: CallTurn, tools: Sequence[Tool] = ()) -> list[Piece]:
        """Write a whole turn: text, calls, text."""
        pieces = self.call_pieces(turn.calls, tools)
        before, after = turn.before, turn.after
        if before:
            is_thought = before.rstrip().endswith(THOUGHT_ENDS)
            before, joint = (before, "") if is_thought else (before.rstrip("\n"), self.text_joint)
            pieces = [typed(before), own(joint), *pieces]
        return [*pieces, own("\n"), typed(after)] if after else pieces

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> list[FunctionCall]:
        """Read calls out of what a model wrote; [] when there are none or one is malformed."""
        return self.read(text, tools).calls

    def read(self, text: str, tools: Sequence[Tool] = ()) -> Answer:
        """Split what a model wrote into text and calls; an answer with a malformed call is all text."""
        try:
            blocks = list(self.find_calls(text, tools))
        except (ValueError, RecursionError):
            blocks = []
        calls = [call for block in blocks for call in block.calls]
        if not calls:
            return Answer(text, [])
        bounds = [0, *(bound for block in blocks for bound in (block.start, block.end)), len(text)]
        head, *rest = [text[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
        around = [head.rstrip(), *(part.strip() for part in rest)]
        return Answer("\n".join(part for part in around if part), calls)


def check_names(names: Iterable[str], pattern: re.Pattern[str]) -> None:
    """Drop a row with a name that the syntax cannot write."""
    if not all(pattern.fullmatch(name) for name in names):
        raise RowDropped("a call has a name that the tool format cannot write")


def declare(tool: Tool) -> Tool:
    """Put OpenAI's wrapper around a tool."""
    return {"type": "function", "function": tool}
