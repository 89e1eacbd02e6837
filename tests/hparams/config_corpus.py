"""Values for every key, made from the declarations: what a user could write, and what it must become."""

from collections.abc import Iterator
from typing import Any

from llamafactory.hparams.schema import Param, Shape


REQUIRED: dict[str, dict[str, Any]] = {
    "train": {"model_name_or_path": "some/model", "output_dir": "saves/run"},
    "chat": {"model_name_or_path": "some/model"},
    "api": {"model_name_or_path": "some/model"},
    "export": {"model_name_or_path": "some/model", "export_dir": "merged"},
    "eval": {"model_name_or_path": "some/model", "task": "mmlu_test"},
}


def good_values(param: Param) -> list[Any]:
    """Every choice, both switches, and values at and inside the bounds."""
    return [value for shape in param.shapes for value in shape_values(shape)]


def shape_values(shape: Shape) -> Iterator[Any]:
    if shape.base is type(None):
        yield None
    elif shape.choices:
        yield from shape.choices
    elif shape.base is bool:
        yield from (True, False)
    elif shape.base is str:
        yield from ("some/name", "two words")
    elif shape.base is dict:
        yield {"use_reentrant": False}
    elif shape.base is tuple:
        items = [value for item in shape.item for value in shape_values(item) if value != "two words"]
        yield (items[0],)
        yield tuple(items[:2])
    else:
        yield from numbers(shape)


def numbers(shape: Shape) -> Iterator[Any]:
    bounds = dict(shape.bounds)
    low = bounds.get(">=", bounds.get(">", 0))
    high = bounds.get("<=", bounds.get("<"))
    if ">=" in bounds:
        yield shape.base(low)
    inside = (low + high) / 2 if high is not None else low + 2
    yield shape.base(inside)


def written(value: Any) -> str:
    """Write a value as a person does on a command line."""
    if isinstance(value, tuple):
        return ",".join(written(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
