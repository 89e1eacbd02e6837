"""Turns what people write into the value a key holds, or says what was expected.

A YAML file says `1e-4`, `no` or `a,b`; a command line says everything as text; Python hands over objects. All of
them come through `coerce`.
"""

import functools
import json
from typing import Any, NamedTuple, cast

from ..extras.errors import UserError
from ..extras.registry import nearest
from .kinds import Arguments
from .schema import Param, Shape, class_params
from .yamltext import Scalar, load_flow


NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
MAX_SHOWN = 80  # characters of a wrong value that a message repeats


class ValueProblem(NamedTuple):
    """Why a value does not fit its key."""

    message: str


def coerce(param: Param, raw: Any) -> Any | ValueProblem:
    """Return the value that raw stands for, or a problem whose message follows the key's name."""
    try:
        prepared = _prepare(param, raw)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        return ValueProblem(f"is not valid JSON: {error.msg} at {where} of {show(param, raw)}")
    except RecursionError:
        return ValueProblem("is nested too deeply")
    if prepared is None and not param.is_required:
        return None if param.is_optional else param.default
    if isinstance(prepared, bool) and not (param.has(bool) or prepared in _choices_of(param, bool)):
        return _problem(param, raw)
    return _validate(param, prepared, raw)


def settle(arguments: Arguments) -> None:
    """Bring every field of a fresh argument object to its type; a value that does not fit is a UserError."""
    for name, param in class_params(type(arguments)).items():
        value = getattr(arguments, name)
        if value is param.default:
            continue
        settled = coerce(param, value)
        if isinstance(settled, ValueProblem):
            raise UserError(f"{name} {settled.message}")
        object.__setattr__(arguments, name, settled)


def describe(param: Param) -> str:
    """Say in words what a key takes: "a whole number >= 1", "one of lora, full"."""
    parts = [_describe_shape(shape) for shape in param.shapes if shape.base is not type(None)]
    if param.is_open:
        parts[parts.index("text")] = "a name that a file in `plugins` registers"
    return " or ".join(dict.fromkeys(part for part in parts if part))


def show(param: Param, raw: Any) -> str:
    """Repeat a value in a message, short, and never when it is a secret."""
    if param.is_secret:
        return "***"
    return shorten(repr(plain(raw)))


def shorten(text: str) -> str:
    """Cut a value that is too long for a message, and keep it on one line."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."


def plain(raw: Any) -> Any:
    """Strip the written form off a value."""
    if isinstance(raw, Scalar):
        return raw.text if raw.text else raw.value
    if isinstance(raw, list):
        return [plain(item) for item in cast("list[Any]", raw)]
    return raw


def _prepare(param: Param, raw: Any) -> Any:
    if isinstance(raw, Scalar):
        raw = _read_scalar(param, raw)
    if raw is False and "no" in param.choices and not param.has(bool):
        raw = "no"  # YAML 1.1 readers take the bare word for false
    if isinstance(raw, str):
        raw = _read_text(param, raw)
    return raw if raw is None or not param.has(tuple) else _read_list(param, raw)


def _read_scalar(param: Param, scalar: Scalar) -> Any:
    """Choose between the text and what YAML takes it for: `no` is false for a switch and a word for a choice."""
    if scalar.text in _choices_of(param, str):
        return scalar.text
    if scalar.value is None or any(_holds(shape, scalar.value) for shape in param.shapes):
        return scalar.value
    wants_text = param.has(str) or param.has(tuple)
    return scalar.text if wants_text else scalar.value


def _holds(shape: Shape, value: Any) -> bool:
    return shape.base is type(value) and (not shape.choices or value in shape.choices)


def _read_text(param: Param, text: str) -> Any:
    for choice in (choice for shape in param.shapes for choice in shape.choices):
        if text == str(choice):
            return choice
    stripped = text.strip()
    if param.has(dict) and stripped.startswith("{"):
        return _read_mapping(stripped)
    if param.has(tuple):
        return _split(param, stripped)
    if param.is_optional and not param.has(str) and stripped.lower() in ("", "none", "null"):
        return None
    return text


def _read_mapping(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        value = load_flow(text)
        if not isinstance(value, dict):
            raise
        return cast("dict[str, Any]", value)


def _split(param: Param, text: str) -> Any:
    if text.startswith("["):
        value = load_flow(text)
        if isinstance(value, list):
            return cast("list[Any]", value)
    if not text:
        return None if param.is_optional else ()
    separator = "," if param.has(str) or "," in text or not _item_choices(param) else None
    return [part.strip() for part in text.split(separator) if part.strip()]


def _read_list(param: Param, raw: Any) -> Any:
    if isinstance(raw, list | tuple | set):
        return tuple(_read_item(param, item) for item in cast("list[Any]", raw))
    return cast("Any", raw) if isinstance(raw, str | dict | bool) else (raw,)


def _read_item(param: Param, item: Any) -> Any:
    if not isinstance(item, Scalar):
        return item
    wants_text = any(shape.base is str for outer in param.shapes for shape in outer.item)
    return item.text if wants_text else item.value


def _validate(param: Param, prepared: Any, raw: Any) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(param.owner, param.name).validate_python(prepared)
    except ValidationError:
        return _problem(param, raw)


@functools.cache
def _adapter(owner: type[Arguments], name: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    kind = owner.__annotations__[name]
    return TypeAdapter[Any](kind, config=ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False))


def _problem(param: Param, raw: Any) -> ValueProblem:
    near = nearest(str(plain(raw)), [str(choice) for choice in param.choices], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueProblem(f"is {show(param, raw)} but must be {describe(param)}{hint}")


def _choices_of(param: Param, base: type) -> list[Any]:
    return [choice for shape in param.shapes for choice in shape.choices if type(choice) is base]


def _item_choices(param: Param) -> bool:
    return any(inner.choices for shape in param.shapes for inner in shape.item)


def _describe_shape(shape: Shape) -> str:
    if shape.base is tuple:
        inner = " or ".join(_describe_shape(item) for item in shape.item)
        return "a list of names" if inner == "text" else f"a list, each item {inner}"
    if shape.choices:
        words = ", ".join(_word(choice) for choice in shape.choices)
        return f"one of {words}" if len(shape.choices) > 1 else words
    noun = NOUNS.get(shape.base, shape.base.__name__)
    limits = " and ".join(f"{sign} {limit:g}" for sign, limit in shape.bounds)
    return f"{noun} {limits}" if limits else noun


def _word(choice: Any) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)
