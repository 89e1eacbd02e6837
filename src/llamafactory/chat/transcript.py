"""Conversations as files: saved as rows that training reads, and the tools that a conversation may call."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.conversation import Message, Role, RowDropped
from ..data.formatter import split_calls
from ..data.tools import parse_tools
from ..extras.errors import UserError


def append_row(path: Path, messages: Sequence[Message], system: str | None, tools: str | None) -> None:
    """Append a conversation to a .jsonl file, in the layout of OpenAI's messages."""
    if path.suffix != ".jsonl":
        raise UserError(f"/save needs the name of a .jsonl file, not {str(path)!r}.")
    if not messages:
        raise UserError("There is nothing to save yet.")
    lead = [{"role": "system", "content": system}] if system else []
    row: dict[str, Any] = {"messages": [*lead, *as_rows(messages)]}
    if tools:
        row["tools"] = [{"type": "function", "function": tool} for tool in parse_tools(tools)]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}.") from None


def read_tools(path: Path) -> tuple[str, list[str]]:
    """Read a JSON list of tools; return it as text, with the names."""
    try:
        text = path.read_text(encoding="utf-8")
        names = [str(tool["name"]) for tool in parse_tools(text)]
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except (RowDropped, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is not a JSON list of tools: {error}.") from None
    return text, names


def as_rows(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Write turns as OpenAI's messages; calls get numbers, by which the results that follow name them."""
    rows: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message.role is Role.FUNCTION:
            turn = split_calls(message.content)
            first = sum(len(row.get("tool_calls", ())) for row in rows)
            functions = [{"name": call.name, "arguments": call.arguments} for call in turn.calls]
            waiting = [f"call_{first + place}" for place in range(len(functions))]
            calls = [
                {"id": name, "type": "function", "function": function}
                for name, function in zip(waiting, functions, strict=True)
            ]
            rows.append({"role": "assistant", "content": (turn.before + turn.after).strip(), "tool_calls": calls})
        elif message.role is Role.OBSERVATION:
            name = {"tool_call_id": waiting.pop(0)} if waiting else {}
            rows.append({"role": "tool", **name, "content": message.content})
        else:
            rows.append({"role": str(message.role), "content": message.content})
    return rows
