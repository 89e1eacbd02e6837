"""JSON Schema (draft 2020-12) of a configuration, so that an editor completes and checks a YAML file."""

from collections.abc import Mapping
from typing import Any

from .legacy import RULES, load_legacy
from .schema import Param, Shape, list_params
from .tables import load_table


DRAFT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
BOUNDS = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}


def build_schema(command: str = "train") -> dict[str, Any]:
    """Return the schema of one command's configuration."""
    params = list_params(command)
    properties = {name: _property(param) for name, param in params.items()}
    return {
        "$schema": DRAFT,
        "title": f"llamafactory-cli {command}",
        "type": "object",
        "properties": {**properties, **_legacy(properties)},
        "required": [name for name, param in params.items() if param.is_required],
        "additionalProperties": False,
        **_closed_without_plugins(params),
    }


def _closed_without_plugins(params: Mapping[str, Param]) -> dict[str, Any]:
    """Let a key take other words than its choices only beside `plugins`, which could register them."""
    closed = {name: {"enum": [*param.choices, None]} for name, param in params.items() if param.is_open}
    if "plugins" not in params or not closed:
        return {}
    return {"if": {"not": {"required": ["plugins"]}}, "then": {"properties": closed}}


def _property(param: Param) -> dict[str, Any]:
    forms = [form for shape in param.shapes for form in _forms(shape)]
    if not param.is_required and {"type": "null"} not in forms:
        forms.append({"type": "null"})  # no value: the default
    schema: dict[str, Any] = {
        "description": _description(param),
        **(forms[0] if len(forms) == 1 else {"anyOf": forms}),
    }
    if not param.is_required:
        schema["default"] = param.default  # json writes a tuple as a list
    if param.is_secret:
        schema["writeOnly"] = True
    return schema


def _forms(shape: Shape) -> list[dict[str, Any]]:
    if shape.base is type(None):
        return [{"type": "null"}]
    if shape.base is tuple:
        items = [form for item in shape.item for form in _forms(item)]
        listing: dict[str, Any] = {"type": "array", "items": items[0] if len(items) == 1 else {"anyOf": items}}
        return [{"type": "string", "description": "comma-separated"}, listing, *_lone_number(shape)]
    if shape.choices:
        return [{"enum": _spellings(shape)}]
    form: dict[str, Any] = {"type": TYPES[shape.base]}
    form.update({BOUNDS[sign]: limit for sign, limit in shape.bounds})
    if shape.base is dict:
        return [form, {"type": "string", "pattern": r"^\s*\{", "description": "a JSON mapping"}]
    return [form]


def _lone_number(shape: Shape) -> list[dict[str, Any]]:
    """A list of numbers with one item may be written as the bare number."""
    return [form for item in shape.item if item.base in (int, float) for form in _forms(item)]


def _spellings(shape: Shape) -> list[Any]:
    """YAML 1.1 reads the word `no` as false, so both are the same choice."""
    return [*shape.choices, *([False] if "no" in shape.choices else [])]


def _description(param: Param) -> str:
    table = load_table("pending.toml")
    row = table["keys"].get(param.name) or table["groups"].get(param.group)
    return f"{param.help} (Not in this version yet.)" if row and "values" not in row else param.help


def _legacy(properties: dict[str, Any]) -> dict[str, Any]:
    legacy = load_legacy()
    rows: dict[str, Any] = {}
    for old, new in legacy.rename.items():
        if new in properties:
            rows[old] = {**properties[new], "description": f"Older name of {new}.", "deprecated": True}
    for old, (_, target) in RULES.items():
        rows[old] = {"description": f"{target[0].upper()}{target[1:]}.", "deprecated": True}
    for old, why in legacy.ignored.items():
        rows[old] = {"description": f"Has no effect: {why}.", "deprecated": True}
    return rows
