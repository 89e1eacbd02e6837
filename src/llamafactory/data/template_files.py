"""Reads templates/*.toml: one table per template, `inherits` takes over another template's keys."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .formatter import EmptyFormatter, Formatter, FunctionFormatter, StringFormatter, ToolFormatter
from .slot_template import ANSWER, SlotTemplate
from .thinking import Thinking


FOLDER = Path(__file__).parent / "templates"


def load_templates(folder: Path = FOLDER) -> dict[str, SlotTemplate]:
    """Read every table of every file."""
    tables: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.toml")):
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if name in tables:
                raise ValueError(f"The template {name!r} stands in two files; one of them is {path.name}.")
            tables[name] = table
    return {name: make_template(name, inherit(name, tables)) for name in tables}


def inherit(name: str, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put a table over the one it inherits from."""
    table = dict(tables[name])
    parent = table.pop("inherits", None)
    return {**inherit(parent, tables), **table} if parent else table


def make_template(name: str, table: Mapping[str, Any]) -> SlotTemplate:
    """Make a template of one table; observations look like user turns, and calls like answers, unless it says not."""
    keys = dict(table)
    tool_format = keys.pop("tool_format", "default")
    formatters: dict[str, Formatter] = {
        "tools": ToolFormatter(tool_format=tool_format),
        "function": FunctionFormatter(
            keys.pop("function", None) or keys.get("assistant") or ANSWER.slots, tool_format=tool_format
        ),
    }
    keys.setdefault("observation", keys.get("user", ["{{content}}"]))
    for key in ("prefix", "generation"):
        formatters[key] = EmptyFormatter(keys.pop(key, ()))
    for key in ("system", "system_thinking", "user", "assistant", "observation"):
        if key in keys:
            formatters[key] = StringFormatter(keys.pop(key))
    keys["stop_words"] = tuple(keys.get("stop_words", ()))
    if "thinking" in keys:
        thinking = dict(keys["thinking"])
        keys["thinking"] = Thinking(tuple(thinking.pop("words")), **thinking)
    return SlotTemplate(name=name, **formatters, **keys)
