"""Tool-call syntaxes: each turns tools into text for the system prompt, calls into text, and text back into calls.

`parse(render_calls(calls)) == calls`; text that holds no well-formed call gives no calls, never an exception.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from ..extras.registry import Registry
from .conversation import RowDropped


Tool = Mapping[str, Any]


class FunctionCall(NamedTuple):
    """One call; arguments is a JSON object as text."""

    name: str
    arguments: str


class ToolFormat(ABC):
    """One syntax, both ways."""

    @abstractmethod
    def render_tools(self, tools: Sequence[Tool]) -> str:
        """Describe the tools and how to call them."""

    @abstractmethod
    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """Write the calls as the model should."""

    @abstractmethod
    def parse(self, text: str) -> list[FunctionCall]:
        """Read calls out of what a model wrote; [] when there are none."""


class ReActToolFormat(ToolFormat):
    """`Action:` and `Action Input:` lines, for models that have no syntax of their own."""

    CALL = re.compile(
        r"Action:[ \t]*(?P<name>[^\n]+?)[ \t]*\nAction Input:[ \t]*(?P<arguments>.+?)(?=\s*\nAction:|\Z)", re.S
    )

    def render_tools(self, tools: Sequence[Tool]) -> str:
        """Describe the tools in plain words."""
        names = ", ".join(str(tool["name"]) for tool in tools)
        return (
            "\n\nThese tools are at your service:\n"
            + "".join(describe_tool(tool) for tool in tools)
            + f"\nTo call one of [{names}], answer with its name and a JSON object of arguments, in this form:\n"
            'Action: the tool\'s name\nAction Input: {"argument": "value"}\n'
        )

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """Write two lines per call."""
        return "\n".join(f"Action: {call.name}\nAction Input: {call.arguments}" for call in calls)

    def parse(self, text: str) -> list[FunctionCall]:
        """Read the pairs of lines."""
        found = [read_call(match["name"], match["arguments"]) for match in self.CALL.finditer(text)]
        return [call for call in found if call] if all(found) else []


class QwenToolFormat(ToolFormat):
    """JSON inside `<tool_call>` tags, as Qwen 2.5 and 3 do."""

    CALL = re.compile(r"<tool_call>\s*(.+?)\s*</tool_call>", re.S)

    def render_tools(self, tools: Sequence[Tool]) -> str:
        """List the tools inside `<tools>` tags."""
        lines = "\n".join(dump({"type": "function", "function": tool}) for tool in tools)
        return (
            "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{lines}\n</tools>\n\n"
            "For each function call, return a json object with function name and arguments within "
            "<tool_call></tool_call> XML tags:\n"
            '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
        )

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """Write one tagged block per call."""
        blocks = [f'{{"name": {dump(call.name)}, "arguments": {call.arguments}}}' for call in calls]
        return "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)

    def parse(self, text: str) -> list[FunctionCall]:
        """Read every tagged block."""
        return read_json_calls(self.CALL.findall(text), "arguments")


class Llama3ToolFormat(ToolFormat):
    """A bare JSON object (a list when there are several), as Llama 3.1 does."""

    def render_tools(self, tools: Sequence[Tool]) -> str:
        """List the tools as indented JSON, under the date lines that Llama 3 expects."""
        listed = "".join(dump({"type": "function", "function": tool}, indent=4) + "\n\n" for tool in tools)
        return (
            f"Cutting Knowledge Date: December 2023\nToday Date: {date.today().strftime('%d %b %Y')}\n\n"
            "You have access to the following functions. To call a function, please respond with JSON for a function "
            'call. Respond in the format {"name": function name, "parameters": dictionary of argument name and its '
            "value}. Do not use variables.\n\n" + listed
        )

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """Write one object, or a list of them."""
        blocks = [f'{{"name": {dump(call.name)}, "parameters": {call.arguments}}}' for call in calls]
        return blocks[0] if len(blocks) == 1 else f"[{', '.join(blocks)}]"

    def parse(self, text: str) -> list[FunctionCall]:
        """Read the whole text as JSON."""
        return read_json_calls([text.strip()], "parameters")


TOOL_FORMATS: Registry[ToolFormat] = Registry(
    "tool format", {"default": ReActToolFormat(), "qwen": QwenToolFormat(), "llama3": Llama3ToolFormat()}
)


def parse_tools(content: str) -> list[Tool]:
    """Read a JSON list of tools; an OpenAI-style {"type": "function", "function": ...} wrapper is taken off."""
    try:
        value = json.loads(content) if content.strip() else []
    except json.JSONDecodeError:
        raise RowDropped("the tools are not JSON") from None

    tools = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in as_list(value)]
    if not all(isinstance(tool, dict) and "name" in tool for tool in tools):
        raise RowDropped("a tool has no name")
    return tools


def parse_calls(content: str) -> list[FunctionCall]:
    """Read one call or a list of calls from JSON; ValueError when it is not that."""
    calls = read_json_calls([content], "arguments")
    if not calls:
        raise ValueError(f"not a call: {content[:80]}")
    return calls


def read_json_calls(blocks: Sequence[str], key: str) -> list[FunctionCall]:
    """Read calls from JSON texts; [] unless every one is well formed."""
    calls: list[FunctionCall | None] = []
    for block in blocks:
        try:
            value = json.loads(block)
        except ValueError:
            return []
        items = as_list(value)
        calls.extend(read_call(item.get("name"), item.get(key)) if isinstance(item, dict) else None for item in items)
    return [call for call in calls if call] if all(calls) else []


def read_call(name: object, arguments: object) -> FunctionCall | None:
    """Make a call; arguments may be an object or, as in OpenAI's answers, an object written as a string."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return FunctionCall(name, dump(arguments))


def describe_tool(tool: Tool) -> str:
    """Describe one tool in plain words: a line for it, and a line for each argument."""
    schema = tool.get("parameters") or {}
    lines = [f"- {tool['name']}: {tool.get('description', '')}".rstrip(": ")]
    for name, spec in (schema.get("properties") or {}).items():
        facts = [str(spec.get("type", "any"))]
        facts += ["required"] if name in (schema.get("required") or []) else []
        facts += [f"one of {', '.join(map(str, spec['enum']))}"] if spec.get("enum") else []
        lines.append(f"  - {name} ({'; '.join(facts)}): {spec.get('description', '')}".rstrip(": "))
    return "\n".join(lines) + "\n"


def as_list(value: Any) -> list[Any]:
    """Put a single value into a list."""
    return value if isinstance(value, list) else [value]


def dump(value: Any, indent: int | None = None) -> str:
    """Write JSON as people read it, without \\u escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
