"""Calls as JSON objects with name and arguments inside tags: Qwen, Hermes, Ling, Granite, MiniMax 1, Phi 4 mini."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..pieces import Piece, own, typed
from .calls import FunctionCall, Tool, dump, load_at, read_calls, skip_blank
from .tool_format import Block, ToolFormat, declare
from .tool_prompts import fill_prompt, join_texts, load_prompts


@dataclass(frozen=True, kw_only=True)
class TaggedJsonFormat(ToolFormat):
    """`<tag>{"name": ..., "arguments": ...}</tag>`; `before`, `between` and `after` surround the described tools."""

    opening: str
    closing: str
    is_repeated: bool = True
    """Every call has its own tags; otherwise all calls stand in one pair."""
    call_joint: str = "\n"
    is_list: bool = False
    """The calls inside the tags are one JSON list."""
    is_declared: bool = True
    """The tools are shown with OpenAI's wrapper around them."""
    prompt: str
    """The words around the list of tools."""
    lead: str = ""
    """What separates them from a system prompt in front."""
    list_indent: int | None = None
    """The tools are shown as one JSON list with this indent, 0 for none; None: one tool a line."""

    def tool_pieces(self, tools: Sequence[Tool], has_system: bool = False) -> list[Piece]:
        """List the tools as JSON."""
        shown = [declare(tool) if self.is_declared else tool for tool in tools]
        texts = [dump(tool) for tool in shown] if self.list_indent is None else [dump(shown, self.list_indent or None)]
        return [own(self.lead if has_system else ""), *fill_prompt(self.prompt, join_texts(texts, "\n"))]

    def call_pieces(self, calls: Sequence[FunctionCall], tools: Sequence[Tool] = ()) -> list[Piece]:
        """Write the calls between tags."""
        inner, outer = (self.closing + self.call_joint + self.opening, self.call_joint)
        joint = inner if self.is_repeated else ", " if self.is_list else outer
        pieces: list[Piece] = [own(self.opening + ("[" if self.is_list else ""))]
        for index, call in enumerate(calls):
            head = (joint if index else "") + '{"name": '
            pieces += [own(head), typed(dump(call.name)), own(', "arguments": '), typed(call.arguments), own("}")]
        return [*pieces, own(("]" if self.is_list else "") + self.closing)]

    def find_calls(self, text: str, tools: Sequence[Tool]) -> Iterable[Block]:
        """Read what stands between tags, object after object."""
        opening = re.compile(re.escape(self.opening.strip()))
        place = 0
        while match := opening.search(text, place):
            calls, place = self._read_inside(text, match.end())
            yield Block(match.start(), place, calls)

    def _read_inside(self, text: str, place: int) -> tuple[list[FunctionCall], int]:
        closing = self.closing.strip()
        value, place = load_at(text, place)
        calls = read_calls(value)
        while closing and not text.startswith(closing, skip_blank(text, place)):
            value, place = load_at(text, place)
            calls += read_calls(value)
        return calls, skip_blank(text, place) + len(closing) if closing else place


PROMPTS = load_prompts()
QWEN = TaggedJsonFormat(opening="<tool_call>\n", closing="\n</tool_call>", prompt=PROMPTS["qwen"])
LING = TaggedJsonFormat(opening="<tool_call>\n", closing="\n</tool_call>", prompt=PROMPTS["ling"], lead="\n")
GRANITE4 = TaggedJsonFormat(opening="<tool_call>\n", closing="\n</tool_call>", prompt=PROMPTS["granite4"], lead="\n\n")
# Granite 3 and MiniMax 1 show the tools in a turn of their own, behind the system turn.
GRANITE3 = TaggedJsonFormat(
    opening="<|tool_call|>",
    closing="",
    is_repeated=False,
    is_list=True,
    text_joint="",
    prompt="{tools}",
    lead="<|end_of_text|>\n<|start_of_role|>available_tools<|end_of_role|>",
    list_indent=4,
)
MINIMAX1 = TaggedJsonFormat(
    opening="<tool_calls>\n",
    closing="\n</tool_calls>",
    is_repeated=False,
    is_declared=False,
    prompt=PROMPTS["minimax1"],
    lead="<end_of_sentence>\n<beginning_of_sentence>system tool_setting=tools\n",
)
PHI4_MINI = TaggedJsonFormat(
    opening="<|tool_call|>",
    closing="<|/tool_call|>",
    is_repeated=False,
    is_list=True,
    is_declared=False,
    text_joint="",
    prompt="<|tool|>{tools}<|/tool|>",
    list_indent=0,
)
