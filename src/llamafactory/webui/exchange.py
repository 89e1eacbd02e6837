"""Between the form and a configuration: values of widgets to keys of a run, and keys back to widgets.

Nothing here imports gradio, so everything that the page writes can be tested without a browser.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from ..hparams.config import SECRET_NAMES, write_value
from ..hparams.pending import is_idle
from ..hparams.schema import Param, list_params
from ..hparams.values import ValueProblem, coerce
from ..hparams.yamltext import read_word
from .composites import COMPOSITES
from .layout import UNSET, Field


PRODUCT = re.compile(r"\s*\d+(\s*\*\s*\d+)*\s*")
EXTRA_ARGS = "extra_args"


class Filled(NamedTuple):
    """What loading a configuration puts into the form."""

    values: dict[str, Any]
    """Element id -> the widget's value."""
    rest: dict[str, Any]
    """Keys that no widget can show; they go into the field of further arguments."""


def read_form(
    fields: Mapping[str, Field], values: Mapping[str, Any], command: str = "train", *, idle: bool = False
) -> dict[str, Any]:
    """Turn the values of widgets (by element id) into the keys of a run.

    Keys that have their declared default are left out, and (unless `idle`) those that do nothing as long as their
    switch is off. A value that does not fit its key is passed on as it is, for the parser to explain.
    """
    config: dict[str, Any] = {}
    by_name = {field.name: values.get(field.id) for field in fields.values()}
    for field in fields.values():
        if field.id not in values or field.widget == "secret":
            continue
        if field.param is None:
            config |= COMPOSITES[field.name].write(values[field.id], by_name)
            continue
        value = typed(field, values[field.id])
        if field.always or value != field.param.default:
            config[field.key] = value
    return config if idle else _without_idle(config, fields, command)


def fill_form(fields: Mapping[str, Field], config: Mapping[str, Any], command: str = "train") -> Filled:
    """Turn the keys of a run into the values of all widgets; what the file does not say has its declared default."""
    params = list_params(command)
    given = {key: _settled(params.get(key), value) for key, value in config.items()}
    values: dict[str, Any] = {}
    taken: set[str] = set()
    for field in fields.values():
        if field.param is None:
            value = COMPOSITES[field.name].read(given)
            if value is not None:
                taken.update(field.keys)
            values[field.id] = field.choices[0] if value is None and field.choices else value
            continue
        declared = None if field.param.is_required else field.param.default
        value = given.get(field.key, declared)
        fits = shows(field, value)
        values[field.id] = to_widget(field, value if fits else declared)
        if fits:
            taken.add(field.key)
    return Filled(values, {key: value for key, value in given.items() if key not in taken})


def typed(field: Field, raw: Any) -> Any:
    """Return the value that a widget stands for; what does not fit comes back as it was written."""
    plain = from_widget(field, raw)
    if plain is None and field.declared.is_required:
        return ""
    value = coerce(field.declared, plain)
    return raw if isinstance(value, ValueProblem) else value


def from_widget(field: Field, raw: Any) -> Any:
    """Return what a widget holds in the form that the parser takes; None for a key that is not set."""
    if raw is None or raw in (UNSET, []):
        return None if field.widget != "switch" else False
    if field.widget == "slider":
        return _number(field, raw)
    if field.widget == "product" and PRODUCT.fullmatch(str(raw)):
        return math.prod(int(part) for part in str(raw).split("*"))
    if isinstance(raw, str) and not _wants_text(field):
        return read_word(raw.strip())
    return raw


def to_widget(field: Field, value: Any) -> Any:
    """Return what a widget shows for the value of its key."""
    if field.widget == "switch":
        return bool(value)
    if field.widget == "secret":
        return UNSET
    if field.widget == "names":
        return [str(item) for item in cast("tuple[Any, ...]", value or ())]
    if field.widget == "slider":
        return 0 if value is None else value
    if value is None:
        return UNSET
    return _as_text(field, value)


def shows(field: Field, value: Any) -> bool:
    """Tell whether the widget can show a value: a slider has ends, a list of choices only its own."""
    if field.widget == "slider" and field.range is not None:
        if value is None:
            return field.zero_is_unset
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and field.range[0] <= value <= field.range[1] and not (field.zero_is_unset and value == 0)
    if field.widget == "choice":
        return value is None or value in field.choices
    if field.widget in ("text", "product"):
        return not isinstance(value, dict | list)
    return True


def to_yaml(config: Mapping[str, Any], head: str = "") -> str:
    """Write a run's keys as a YAML file, one line each."""
    return head + "".join(f"{key}: {write_value(value)}\n" for key, value in config.items())


def without_secrets(config: Mapping[str, Any], command: str = "train") -> dict[str, Any]:
    """Leave out what must not stand in a file: keys declared secret, and those that are called like one."""
    params = list_params(command)
    return {
        key: value
        for key, value in config.items()
        if not (params[key].is_secret if key in params else SECRET_NAMES.search(key))
    }


def _without_idle(config: dict[str, Any], fields: Mapping[str, Field], command: str) -> dict[str, Any]:
    """Leave out keys whose switch is off, so that the file says only what counts."""
    params = list_params(command)
    effective = {key: param.default for key, param in params.items()} | config
    kept = {key for field in fields.values() if field.always for key in field.keys}
    return {key: value for key, value in config.items() if key in kept or not is_idle(command, params[key], effective)}


def _settled(param: Param | None, value: Any) -> Any:
    if param is None:
        return value
    result = coerce(param, value)
    return value if isinstance(result, ValueProblem) else result


def _number(field: Field, raw: Any) -> Any:
    if field.zero_is_unset and raw == 0:
        return None
    return int(raw) if isinstance(raw, float) and raw.is_integer() else raw


def _wants_text(field: Field) -> bool:
    param = field.param
    return param is not None and (param.has(str) or param.has(tuple) or param.has(dict)) and not param.has(bool)


def _as_text(field: Field, value: Any) -> Any:
    if field.widget in ("choice", "open"):
        return str(value).lower() if isinstance(value, bool) else value
    if field.widget == "mapping" or isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    if field.widget == "product" and isinstance(value, int) and math.isqrt(value) ** 2 == value:
        return f"{math.isqrt(value)}*{math.isqrt(value)}"
    if isinstance(value, tuple):
        return ",".join(str(item) for item in cast("tuple[Any, ...]", value))
    return str(value).lower() if isinstance(value, bool) else str(value)
