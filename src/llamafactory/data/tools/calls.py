"""Calls and tools as plain values, read from strict JSON.

Strict: NaN and Infinity are not JSON, and text that is not Unicode (a lone surrogate) cannot be tokenized.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

from ..conversation import RowDropped


Tool: TypeAlias = Mapping[str, Any]
Schema: TypeAlias = Mapping[str, Any]
BLANK = re.compile(r"\s*")


class FunctionCall(NamedTuple):
    """One call; arguments is a JSON object as text."""

    name: str
    arguments: str

    @property
    def values(self) -> dict[str, Any]:
        """The arguments as an object."""
        return load(self.arguments)


@functools.lru_cache(maxsize=64)
def parse_tools(content: str) -> tuple[Tool, ...]:
    """Read a JSON list of tools; an OpenAI-style {"type": "function", "function": ...} wrapper is taken off."""
    try:
        value = load(content) if content.strip() else []
    except (ValueError, RecursionError):
        raise RowDropped("the tools are not JSON") from None

    tools = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in as_list(value)]
    if not all(isinstance(tool, dict) and isinstance(tool.get("name"), str) for tool in tools):
        raise RowDropped("a tool has no name")
    return tuple(tools)


def parse_calls(content: str) -> list[FunctionCall]:
    """Read one call or a list of calls from JSON; ValueError when it is not that."""
    try:
        value = load(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return read_calls(value)


def read_calls(value: object, arguments_key: str = "arguments") -> list[FunctionCall]:
    """Make calls of {"name", "arguments"} objects; ValueError unless there is one and all are well formed."""
    items = as_list(value)
    if not items or not all(isinstance(item, dict) for item in items):
        raise ValueError("not a call")
    return [read_call(item.get("name"), item.get(arguments_key)) for item in items]


def read_call(name: object, arguments: object) -> FunctionCall:
    """Make a call; arguments may be an object or, as in OpenAI's answers, an object written as a string."""
    if isinstance(arguments, str):
        arguments = load(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call needs a name and an object of arguments")
    return FunctionCall(name, dump(arguments))


def properties_of(tools: Sequence[Tool], name: str) -> Schema:
    """Return what the tool called name says about its arguments; nothing when it says nothing."""
    for tool in tools:
        if tool.get("name") == name:
            parameters = tool.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            return properties if isinstance(properties, dict) else {}
    return {}


def is_text_type(schema: object) -> bool:
    """Tell whether a schema allows text and nothing else."""
    return isinstance(schema, dict) and schema.get("type") in ("string", ["string"])


def load(text: str) -> Any:
    """Read strict JSON; ValueError for anything else."""
    return _checked(json.loads(text, parse_constant=_refuse), text)


def load_at(text: str, start: int) -> tuple[Any, int]:
    """Read one JSON value at a place; return it and where the text goes on. A closing tag inside a string is text."""
    start = skip_blank(text, start)
    value, end = DECODER.raw_decode(text, start)
    return _checked(value, text[start:end]), end


def skip_blank(text: str, start: int) -> int:
    """Return the place behind white space."""
    match = BLANK.match(text, start)
    return match.end() if match else start


def dump(value: Any, indent: int | None = None) -> str:
    """Write JSON as people read it, without \\u escapes; ValueError for what is not JSON or not Unicode."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    text.encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate
    return text


def as_list(value: Any) -> list[Any]:
    """Put a single value into a list."""
    return value if isinstance(value, list) else [value]


def _checked(value: Any, text: str) -> Any:
    """Refuse what cannot be written again: numbers beyond a float, half of a surrogate pair."""
    if SUSPECT.search(text):
        dump(value)
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


SUSPECT = re.compile(r"\\u[dD]|[\ud800-\udfff]|[eE]\+?\d{3}|\d{300}")
DECODER = json.JSONDecoder(parse_constant=_refuse)
