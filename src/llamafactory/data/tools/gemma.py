"""Gemma 4's own notation, for tools as well as for calls."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..conversation import RowDropped
from ..pieces import Piece, own, typed
from .calls import FunctionCall, Tool, dump, read_call
from .literals import GemmaReader
from .tool_format import Block, ToolFormat, check_names


NAME = re.compile(r"[^\s,:=(){}\[\]<>\"]+")
HEAD = re.compile(r"<\|tool_call>\s*call:\s*(?P<name>[^\s,:=(){}\[\]<>\"]+)\s*(?=\{)")
CLOSING = "<tool_call|>"
QUOTE = '<|"|>'


class GemmaFormat(ToolFormat):
    """`<|tool_call>call:name{key:<|"|>text<|"|>}<tool_call|>`; every tool is declared in the same notation."""

    def tool_pieces(self, tools: Sequence[Tool], has_system: bool = False) -> list[Piece]:
        """Declare the tools."""
        return [piece for tool in tools for piece in (own("<|tool>"), *write_declaration(tool), own("<tool|>"))]

    def call_pieces(self, calls: Sequence[FunctionCall], tools: Sequence[Tool] = ()) -> list[Piece]:
        """Write the calls one after the other."""
        pieces: list[Piece] = []
        for call in calls:
            check_names([call.name], NAME)
            pieces += [own("<|tool_call>call:"), typed(call.name), *write_value(call.values), own(CLOSING)]
        return pieces

    def find_calls(self, text: str, tools: Sequence[Tool]) -> Iterable[Block]:
        """Read call after call."""
        place = 0
        while match := HEAD.search(text, place):
            reader = GemmaReader(text, match.end())
            call = read_call(match["name"], reader.value())
            reader.take(CLOSING)
            place = reader.place
            yield Block(match.start(), place, [call])


def write_declaration(tool: Tool) -> list[Piece]:
    """Declare one tool: its description and its parameters."""
    fields: dict[str, list[Piece]] = {"description": write_text(str(tool.get("description") or ""))}
    schema = tool.get("parameters")
    if isinstance(schema, dict) and schema:
        fields["parameters"] = write_fields(object_fields(schema))
    return [own("declaration:"), typed(str(tool["name"])), *write_fields(fields)]


def write_schema(schema: object) -> list[Piece]:
    """Describe one parameter: what it is for, what it may be, and last its type."""
    if not isinstance(schema, dict):
        return write_value(schema)
    fields: dict[str, list[Piece]] = {}
    if schema.get("description"):
        fields["description"] = write_text(str(schema["description"]))
    if schema.get("nullable"):
        fields["nullable"] = [own("true")]
    if schema.get("enum"):
        fields["enum"] = write_value(schema["enum"])
    if isinstance(schema.get("items"), dict):
        fields["items"] = write_schema(schema["items"])
    return write_fields({**fields, **object_fields(schema)})


def object_fields(schema: Mapping[str, Any]) -> dict[str, list[Piece]]:
    """Return the fields of an object's schema."""
    fields: dict[str, list[Piece]] = {}
    properties = schema.get("properties")
    if isinstance(properties, dict) and properties:
        fields["properties"] = write_fields({key: write_schema(properties[key]) for key in sorted(properties)})
    if schema.get("required"):
        fields["required"] = write_value(schema["required"])
    if schema.get("type"):
        kind = schema["type"]
        fields["type"] = write_value(
            [str(item).upper() for item in kind] if isinstance(kind, list) else str(kind).upper()
        )
    return fields


def write_value(value: Any) -> list[Piece]:
    """Write one value; text stands between marks."""
    if isinstance(value, str):
        return write_text(value)
    if isinstance(value, dict):
        return write_fields({str(key): write_value(item) for key, item in value.items()})
    if isinstance(value, list):
        parts = [piece for item in value for piece in (own(","), *write_value(item))]
        return [own("["), *parts[1:], own("]")]
    return [typed(dump(value))]


def write_fields(fields: Mapping[str, list[Piece]]) -> list[Piece]:
    """Write keys with their values; a key that is not a plain word stands between marks like text."""
    pieces: list[Piece] = []
    for key, value in fields.items():
        name = [typed(key)] if NAME.fullmatch(key) else write_text(key)
        pieces += [own(","), *name, own(":"), *value]
    return [own("{"), *pieces[1:], own("}")]


def write_text(text: str) -> list[Piece]:
    """Write text between marks; nothing can hide a mark inside it."""
    if QUOTE in text:
        raise RowDropped(f"text holds {QUOTE}, which the tool format cannot write")
    return [own(QUOTE), typed(text), own(QUOTE)]


GEMMA4 = GemmaFormat(text_joint="")
