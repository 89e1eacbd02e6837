"""Calls as a name followed by a JSON object: ReAct lines, GLM 4, DeepSeek 3, Kimi K2, current Mistral models."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..pieces import Piece, own, typed
from .calls import FunctionCall, Tool, dump, load_at, read_call, skip_blank
from .tool_format import Block, ToolFormat, check_names, declare
from .tool_prompts import fill_prompt, join_texts, load_prompts


Describe = Callable[[Sequence[Tool], bool], list[Piece]]
NAME = r"[^\s<>\[\]{}|\"]+"


@dataclass(frozen=True, kw_only=True)
class NamedJsonFormat(ToolFormat):
    """`opening`, then for every call `call_open` name `between` arguments `call_close`, then `closing`."""

    describe: Describe
    opening: str = ""
    call_open: str = ""
    between: str = "\n"
    """What stands between name and arguments; `{index}` in it is the number of the call."""
    call_close: str = ""
    call_joint: str = ""
    closing: str = ""
    head: re.Pattern[str]
    """Finds `call_open`, the name and `between`."""
    name_pattern: re.Pattern[str] = re.compile(NAME)
    is_last: bool = False
    """Nothing may follow the calls; and where tools are known, only those are called. For syntaxes without tags."""

    def tool_pieces(self, tools: Sequence[Tool], has_system: bool = False) -> list[Piece]:
        """Describe the tools."""
        return self.describe(tools, has_system)

    def call_pieces(self, calls: Sequence[FunctionCall], tools: Sequence[Tool] = ()) -> list[Piece]:
        """Write name and arguments of each call."""
        check_names((call.name for call in calls), self.name_pattern)
        pieces = [own(self.opening)]
        for index, call in enumerate(calls):
            between = self.between.replace("{index}", str(index))
            pieces += [own((self.call_joint if index else "") + self.call_open), typed(call.name), own(between)]
            pieces += [typed(call.arguments), own(self.call_close)]
        return [*pieces, own(self.closing)]

    def find_calls(self, text: str, tools: Sequence[Tool]) -> Iterable[Block]:
        """Read call after call."""
        blocks = list(self._find_blocks(text))
        if blocks and self.is_last:
            names = {tool["name"] for tool in tools}
            is_known = all(call.name in names for block in blocks for call in block.calls)
            if text[blocks[-1].end :].strip() or (names and not is_known):
                raise ValueError("an ordinary answer that happens to look like a call")
        return blocks

    def _find_blocks(self, text: str) -> Iterable[Block]:
        start = re.compile(rf"{re.escape(self.opening)}\s*{self.head.pattern}" if self.opening else self.head.pattern)
        place = 0
        while match := start.search(text, place):
            calls: list[FunctionCall] = []
            head: re.Match[str] | None = match
            while head:
                value, place = load_at(text, head.end())
                place = expect(text, place, self.call_close)
                calls.append(read_call(head["name"], value))
                head = self.head.match(text, skip_blank(text, place)) if self.opening else None
            place = expect(text, place, self.closing)
            yield Block(match.start(), place, calls)


def expect(text: str, place: int, mark: str) -> int:
    """Return the place behind a mark; ValueError when something else stands there."""
    mark = mark.strip()
    if not mark:
        return place
    place = skip_blank(text, place)
    if not text.startswith(mark, place):
        raise ValueError(f"{mark} is missing")
    return place + len(mark)


def describe_in_words(tools: Sequence[Tool], has_system: bool) -> list[Piece]:
    """Describe tools to a model that has no syntax of its own; the wording is ours."""
    names = ", ".join(str(tool["name"]) for tool in tools)
    return [
        own("\n\nThese tools are at your service:\n"),
        typed("".join(describe_tool(tool) for tool in tools)),
        own("To call one of ["),
        typed(names),
        own(
            "], answer with its name and a JSON object of arguments, in this form:\n"
            'Action: the tool\'s name\nAction Input: {"argument": "value"}\n'
        ),
    ]


def describe_tool(tool: Tool) -> str:
    """Describe one tool in plain words: a line for it, and a line for each argument."""
    schema = tool.get("parameters")
    schema = schema if isinstance(schema, dict) else {}
    lines = [f"- {tool['name']}: {tool.get('description') or ''}".rstrip(": ")]
    for name, spec in (schema.get("properties") or {}).items():
        spec = spec if isinstance(spec, dict) else {}
        facts = [str(spec.get("type", "any"))]
        facts += ["required"] if name in (schema.get("required") or []) else []
        facts += [f"one of {', '.join(map(str, spec['enum']))}"] if isinstance(spec.get("enum"), list) else []
        lines.append(f"  - {name} ({'; '.join(facts)}): {spec.get('description') or ''}".rstrip(": "))
    return "\n".join(lines) + "\n"


def describe_for_glm4(tools: Sequence[Tool], has_system: bool) -> list[Piece]:
    """Describe tools as ChatGLM 3 and GLM 4 expect them, under the system prompt that goes with them."""
    closing = PROMPTS["glm4"].split("{tools}")[1]
    listed: list[Piece] = []
    for tool in tools:
        listed += [own(closing if listed else ""), own("\n\n## "), typed(f"{tool['name']}\n\n{dump(tool, indent=4)}")]
    return [own("\n\n" if has_system else ""), *fill_prompt(PROMPTS["glm4"], listed)]


def describe_for_deepseek_v3(tools: Sequence[Tool], has_system: bool) -> list[Piece]:
    """Describe tools to DeepSeek V3."""
    return fill_prompt(PROMPTS["deepseek_v3"], join_texts([dump(declare(tool)) for tool in tools], "\n"))


def describe_for_deepseek_v3_1(tools: Sequence[Tool], has_system: bool) -> list[Piece]:
    """Describe tools as the model card of DeepSeek V3.1 does."""
    texts = [
        f"### {tool['name']}\nDescription: {tool.get('description') or ''}\n\n"
        f"Parameters: {dump(tool.get('parameters') or {})}\n"
        for tool in tools
    ]
    return fill_prompt(PROMPTS["deepseek_v3_1"], join_texts(texts, "\n"))


def describe_for_kimi_k2(tools: Sequence[Tool], has_system: bool) -> list[Piece]:
    """Declare tools in a turn of their own, behind the system turn (Kimi's own template puts it in front)."""
    lead = "<|im_end|><|im_system|>tool_declare<|im_middle|>" if has_system else ""
    return [own(lead), typed(dump([declare(tool) for tool in tools]))]


def describe_for_mistral_v13(tools: Sequence[Tool], has_system: bool) -> list[Piece]:
    """List the tools between Mistral's control tokens, without the spaces of the older models."""
    return [own("[AVAILABLE_TOOLS]"), typed(dump([declare(tool) for tool in tools])), own("[/AVAILABLE_TOOLS]")]


PROMPTS = load_prompts()
DEFAULT = NamedJsonFormat(
    describe=describe_in_words,
    call_open="Action: ",
    between="\nAction Input: ",
    call_joint="\n",
    head=re.compile(r"(?m:^)Action:[ \t]*(?P<name>\S(?:[^\n]*\S)?)[ \t]*\nAction Input:"),
    name_pattern=re.compile(r"\S(?:[^\n]*\S)?"),
)
# The models were made for one call a turn; several stand one under the other.
GLM4 = NamedJsonFormat(
    describe=describe_for_glm4,
    call_joint="\n",
    head=re.compile(r"(?m:^)(?P<name>[\w.:/-]+)\n\s*(?=\{)"),
    name_pattern=re.compile(r"[\w.:/-]+"),
    is_last=True,
)
DEEPSEEK_V3 = NamedJsonFormat(
    describe=describe_for_deepseek_v3,
    opening="<\uff5ctool\u2581calls\u2581begin\uff5c>",
    call_open="<\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>",
    between="\n```json\n",
    call_close="\n```<\uff5ctool\u2581call\u2581end\uff5c>",
    call_joint="\n",
    closing="<\uff5ctool\u2581calls\u2581end\uff5c>",
    head=re.compile(
        rf"<\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>(?P<name>{NAME})\s*```json"
    ),
    text_joint="",
)
DEEPSEEK_V3_1 = NamedJsonFormat(
    describe=describe_for_deepseek_v3_1,
    opening="<\uff5ctool\u2581calls\u2581begin\uff5c>",
    call_open="<\uff5ctool\u2581call\u2581begin\uff5c>",
    between="<\uff5ctool\u2581sep\uff5c>",
    call_close="<\uff5ctool\u2581call\u2581end\uff5c>",
    closing="<\uff5ctool\u2581calls\u2581end\uff5c>",
    head=re.compile(rf"<\uff5ctool\u2581call\u2581begin\uff5c>(?P<name>{NAME})\s*<\uff5ctool\u2581sep\uff5c>"),
    text_joint="",
)
KIMI_K2 = NamedJsonFormat(
    describe=describe_for_kimi_k2,
    opening="<|tool_calls_section_begin|>",
    call_open="<|tool_call_begin|>functions.",
    between=":{index}<|tool_call_argument_begin|>",
    call_close="<|tool_call_end|>",
    closing="<|tool_calls_section_end|>",
    head=re.compile(rf"<\|tool_call_begin\|>\s*functions\.(?P<name>{NAME}):\d+\s*<\|tool_call_argument_begin\|>"),
    text_joint="",
)
# The first [TOOL_CALLS] is part of the template's slot, as with the older models.
MISTRAL_V13 = NamedJsonFormat(
    describe=describe_for_mistral_v13,
    between="[ARGS]",
    call_joint="[TOOL_CALLS]",
    head=re.compile(rf"(?:\[TOOL_CALLS\]\s*)?(?<![^\s<>\[\]{{}}|\"])(?P<name>{NAME})(?:\[CALL_ID\]\w+)?\[ARGS\]"),
)
