"""Calls with one element per argument: Qwen 3.5, Seed OSS, MiniMax 2, GLM 4.5 and 4.7, DeepSeek 3.2.

Text stands there as it is, other values as JSON. Text that itself looks like JSON ("75001", "true") is ambiguous:
where the tool's schema says that the argument is text, it is written and read as it is, which is what the models
learned; without a schema it is written as a JSON string, so that it comes back as text. Text that holds the closing
tag is written as a JSON string whose < is escaped.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..pieces import Piece, own, typed
from .calls import FunctionCall, Tool, dump, is_text_type, load, properties_of, read_call
from .tool_format import Block, ToolFormat, check_names, declare
from .tool_prompts import fill_prompt, join_texts, load_prompts


NAME = re.compile(r"[^\s<>\"=]+")
KEY = re.compile(r"[^\s<>\"](?:[^<>\"\n]*[^\s<>\"])?")


class Marks(NamedTuple):
    """What finds the parts of calls; white space between parts does not matter."""

    start: re.Pattern[str]
    head: re.Pattern[str]
    argument: re.Pattern[str]
    tail: re.Pattern[str]
    end: re.Pattern[str]


@dataclass(frozen=True, kw_only=True)
class XmlFormat(ToolFormat):
    """The marks around calls (block), each call and each argument."""

    block: tuple[str, str]
    call: tuple[str, str, str]
    """Before the name, after it, after the arguments."""
    argument: tuple[str, str, str]
    """Before the name, between name and value, after the value."""
    is_shared: bool = False
    """All calls stand in one block."""
    block_joint: str = ""
    prompt: str
    tool_joint: str = "\n"
    is_declared: bool = False
    """The tools are shown with OpenAI's wrapper around them."""
    is_list: bool = False
    """The tools are shown as one JSON list."""
    lead: str = ""
    """What separates the prompt from a system prompt in front."""
    no_system: str = ""
    """What stands in front of the prompt when there is no system prompt."""

    def tool_pieces(self, tools: Sequence[Tool], has_system: bool = False) -> list[Piece]:
        """List the tools as JSON inside the prompt."""
        shown = [declare(tool) if self.is_declared else tool for tool in tools]
        texts = [dump(shown)] if self.is_list else [dump(tool) for tool in shown]
        lead = self.lead if has_system else self.no_system
        return [own(lead), *fill_prompt(self.prompt, join_texts(texts, self.tool_joint))]

    def call_pieces(self, calls: Sequence[FunctionCall], tools: Sequence[Tool] = ()) -> list[Piece]:
        """Write every argument in an element of its own."""
        joint = "" if self.is_shared else self.block[1] + self.block_joint + self.block[0]
        pieces = [own(self.block[0])]
        for index, call in enumerate(calls):
            values, schema = call.values, properties_of(tools, call.name)
            check_names([call.name], NAME)
            check_names(values, KEY)
            pieces += [own((joint if index else "") + self.call[0]), typed(call.name), own(self.call[1])]
            for key, value in values.items():
                pieces += self.argument_pieces(key, value, is_text_type(schema.get(key)))
            pieces.append(own(self.call[2]))
        return [*pieces, own(self.block[1])]

    def argument_pieces(self, key: str, value: Any, is_text: bool) -> list[Piece]:
        """Write one argument."""
        text = write_value(value, self.closing_tag, is_text)
        return [own(self.argument[0]), typed(key), own(self.argument[1]), typed(text), own(self.argument[2])]

    def find_calls(self, text: str, tools: Sequence[Tool]) -> Iterable[Block]:
        """Read block after block, call after call, argument after argument."""
        place = 0
        while opening := self.marks.start.search(text, place):
            calls: list[FunctionCall] = []
            place = opening.end()
            while (self.is_shared or not calls) and (head := self.marks.head.match(text, place)):
                call, place = self._read_call(text, head, tools)
                calls.append(call)
            place = end_of(self.marks.end.match(text, place))
            yield Block(opening.start(), place, calls)

    def read_argument(self, match: re.Match[str], is_text: bool) -> Any:
        """Read the value of one argument."""
        return read_value(match["value"], self.closing_tag, is_text)

    @property
    def closing_tag(self) -> str:
        """The tag that ends a value."""
        return self.argument[2].strip()

    @cached_property
    def marks(self) -> Marks:
        """The patterns that follow from the marks."""
        before, middle, after = (lenient(mark) for mark in self.argument)
        name = rf"\s*{lenient(self.call[0].strip())}\s*(?P<name>{NAME.pattern})\s*{lenient(self.call[1].strip())}"
        argument = rf"\s*{before}(?P<key>{KEY.pattern}){middle}(?P<value>.*?){after}"
        return Marks(
            start=re.compile(re.escape(self.block[0].strip())),
            head=re.compile(name),
            argument=re.compile(argument, re.DOTALL),
            tail=re.compile(rf"\s*{re.escape(self.call[2].strip())}"),
            end=re.compile(rf"\s*{re.escape(self.block[1].strip())}"),
        )

    def _read_call(self, text: str, head: re.Match[str], tools: Sequence[Tool]) -> tuple[FunctionCall, int]:
        schema = properties_of(tools, head["name"])
        values: dict[str, Any] = {}
        place = head.end()
        while match := self.marks.argument.match(text, place):
            values[match["key"]] = self.read_argument(match, is_text_type(schema.get(match["key"])))
            place = match.end()
        return read_call(head["name"], values), end_of(self.marks.tail.match(text, place))


@dataclass(frozen=True, kw_only=True)
class FlaggedXmlFormat(XmlFormat):
    """DeepSeek 3.2: an attribute says whether a value is text or JSON; `{flag}` stands where it goes."""

    def argument_pieces(self, key: str, value: Any, is_text: bool) -> list[Piece]:
        """Write one argument with its flag."""
        is_plain = isinstance(value, str) and self.closing_tag not in value
        text = value if is_plain else escape(dump(value), self.closing_tag)
        middle = self.argument[1].replace("{flag}", "true" if is_plain else "false")
        return [own(self.argument[0]), typed(key), own(middle), typed(text), own(self.argument[2])]

    def read_argument(self, match: re.Match[str], is_text: bool) -> Any:
        """Read one argument as its flag says."""
        return match["value"] if match["flag"] == "true" else load(match["value"])


def write_value(value: Any, closing: str, is_text: bool) -> str:
    """Write one value so that read_value returns it."""
    if isinstance(value, str) and not needs_quotes(value, closing, is_text):
        return value
    return escape(dump(value), closing)


def read_value(text: str, closing: str, is_text: bool) -> Any:
    """Read one value: JSON where it is JSON, text otherwise, and always text where the schema says so."""
    if is_text and not needs_quotes(text, closing, is_text):
        return text
    try:
        return load(text)
    except ValueError:
        return text


def needs_quotes(text: str, closing: str, is_text: bool) -> bool:
    """Tell whether text would be read back as something else if it were written as it is."""
    if closing in text:
        return True
    try:
        value = load(text)
    except (ValueError, RecursionError):
        return False
    return not is_text or (isinstance(value, str) and needs_quotes(value, closing, is_text))


def escape(text: str, closing: str) -> str:
    """Hide a closing tag inside JSON; < occurs only in its strings."""
    return text.replace("<", "\\u003c") if closing in text else text


def lenient(mark: str) -> str:
    """Write a mark as a pattern: a line break at its ends may be missing, white space inside may differ."""
    pattern = re.sub(r">(?:\\\n)?<", r">\\s*<", re.escape(mark.strip("\n")))
    pattern = pattern.replace(re.escape("{flag}"), "(?P<flag>true|false)")
    return ("\n?" if mark.startswith("\n") else "") + pattern + ("\n?" if mark.endswith("\n") else "")


def end_of(match: re.Match[str] | None) -> int:
    """Return where a match ends; ValueError when there is none."""
    if match is None:
        raise ValueError("a call does not end")
    return match.end()


PROMPTS = load_prompts()
FUNCTION = ("<function=", ">\n", "</function>")
QWEN3_5 = XmlFormat(
    block=("<tool_call>\n", "\n</tool_call>"),
    block_joint="\n",
    call=FUNCTION,
    argument=("<parameter=", ">\n", "\n</parameter>\n"),
    prompt=PROMPTS["qwen3_5"],
)
SEED_OSS = XmlFormat(
    block=("<seed:tool_call>\n", "\n</seed:tool_call>"),
    block_joint="\n",
    call=FUNCTION,
    argument=("<parameter=", ">", "</parameter>\n"),
    text_joint="\n\n",
    prompt=PROMPTS["seed_oss"],
    is_list=True,
    lead="\n",
    no_system=(
        "You are Doubao, a helpful AI assistant. You may call one or more functions to assist with the user query.\n"
    ),
)
MINIMAX2 = XmlFormat(
    block=("\n<minimax:tool_call>\n", "</minimax:tool_call>"),
    is_shared=True,
    call=('<invoke name="', '">\n', "</invoke>\n"),
    argument=('<parameter name="', '">', "</parameter>\n"),
    text_joint="",
    prompt=PROMPTS["minimax2"],
    tool_joint="</tool>\n<tool>",
)
GLM4_MOE = XmlFormat(
    block=("\n<tool_call>", "</tool_call>"),
    call=("", "\n", ""),
    argument=("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
    text_joint="",
    prompt=PROMPTS["glm4_moe"],
    is_declared=True,
)
GLM4_7 = XmlFormat(
    block=("<tool_call>", "</tool_call>"),
    call=("", "", ""),
    argument=("<arg_key>", "</arg_key><arg_value>", "</arg_value>"),
    text_joint="",
    prompt=PROMPTS["glm4_7"],
    is_declared=True,
)
DSML = "\uff5cDSML\uff5c"
DEEPSEEK_V3_2 = FlaggedXmlFormat(
    block=(f"\n\n<{DSML}function_calls>\n", f"</{DSML}function_calls>"),
    is_shared=True,
    call=(f'<{DSML}invoke name="', '">\n', f"</{DSML}invoke>\n"),
    argument=(f'<{DSML}parameter name="', '" string="{flag}">', f"</{DSML}parameter>\n"),
    text_joint="",
    prompt=PROMPTS["deepseek_v3_2"],
)
