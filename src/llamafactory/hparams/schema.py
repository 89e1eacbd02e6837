"""The one description of every key, read off the argument classes.

YAML keys, flags, --help, the JSON schema, the reference page and the web form all come from `list_params`.
"""

import ast
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt

from .backends_args import MegatronBridgeArguments
from .data_args import DataArguments
from .evaluation_args import EvaluationArguments
from .finetuning_args import FinetuningArguments
from .generating_args import GeneratingArguments
from .kinds import Arguments, PluginMark, SecretMark
from .model_args import ModelArguments
from .training_args import TrainingArguments


Bound = tuple[str, float]  # (">=", 1)

COMMAND_CLASSES: Mapping[str, tuple[type[Arguments], ...]] = {
    "train": (
        ModelArguments,
        DataArguments,
        TrainingArguments,
        FinetuningArguments,
        GeneratingArguments,
        MegatronBridgeArguments,
    ),
    "chat": (ModelArguments, DataArguments, FinetuningArguments, GeneratingArguments),
    "api": (ModelArguments, DataArguments, FinetuningArguments, GeneratingArguments),
    "export": (ModelArguments, DataArguments, FinetuningArguments, GeneratingArguments),
    "eval": (ModelArguments, DataArguments, EvaluationArguments, FinetuningArguments),
}


@dataclass(frozen=True)
class Shape:
    """One form that a value may take; `int | None` has two."""

    base: type[Any]
    choices: tuple[Any, ...] = ()
    bounds: tuple[Bound, ...] = ()
    item: "tuple[Shape, ...]" = ()
    """For lists: the forms of one item."""


@dataclass(frozen=True)
class Param:
    """One key."""

    name: str
    kind: Any
    """The annotation, which pydantic checks values with."""
    default: Any
    """MISSING when the key is required."""
    shapes: tuple[Shape, ...]
    owner: type[Arguments]
    """The class that declares the key; its docstring is the title of the group."""

    @property
    def is_required(self) -> bool:
        return self.default is MISSING

    @property
    def is_optional(self) -> bool:
        """Whether null is a value of its own."""
        return self.has(type(None))

    @property
    def is_secret(self) -> bool:
        return any(isinstance(mark, SecretMark) for mark in _metadata(self.kind))

    @property
    def is_open(self) -> bool:
        """Whether plug-ins can add names to the choices."""
        return any(isinstance(mark, PluginMark) for mark in _metadata(self.kind))

    @property
    def choices(self) -> tuple[Any, ...]:
        """All fixed words or numbers the key takes, those of list items too."""
        own = [choice for shape in self.shapes for choice in shape.choices]
        return (*own, *(choice for shape in self.shapes for inner in shape.item for choice in inner.choices))

    @property
    def bounds(self) -> tuple[Bound, ...]:
        return tuple(bound for shape in self.shapes for bound in shape.bounds)

    @property
    def group(self) -> str:
        """Short name of the group, as in `train --help lora`."""
        return self.owner.__name__.removeprefix("Base").removesuffix("Arguments").lower()

    @property
    def title(self) -> str:
        return (self.owner.__doc__ or self.group).rstrip(".")

    @property
    def help(self) -> str:
        """The line under the field; the source file is read for it, so ask only when it is shown."""
        return read_help(self.owner)[self.name]

    def has(self, base: type[Any]) -> bool:
        return any(shape.base is base for shape in self.shapes)


@functools.cache
def list_params(command: str) -> dict[str, Param]:
    """Return every key that a command takes, in the order of the classes."""
    return {name: param for owner in COMMAND_CLASSES[command] for name, param in class_params(owner).items()}


@functools.cache
def secret_names(command: str) -> tuple[str, ...]:
    """Return the keys of a command whose values are never printed, logged or saved."""
    return tuple(name for name, param in list_params(command).items() if param.is_secret)


@functools.cache
def class_params(owner: type[Arguments]) -> dict[str, Param]:
    """Return the keys of one argument class, group by group."""
    return {item.name: _param(owner, item.name, item.default) for item in fields(owner)}


def list_commands(name: str) -> list[str]:
    """Return the commands that take a key."""
    return [command for command in COMMAND_CLASSES if name in list_params(command)]


@functools.cache
def read_help(owner: type[Arguments]) -> dict[str, str]:
    """Read the docstring lines under the fields of one class out of its source file."""
    tree = ast.parse(Path(str(sys.modules[owner.__module__].__file__)).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner.__name__)
    return dict(_documented(body))


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field_node, next_node in itertools.pairwise(body):
        if not (isinstance(field_node, ast.AnnAssign) and isinstance(field_node.target, ast.Name)):
            continue
        if isinstance(next_node, ast.Expr) and isinstance(next_node.value, ast.Constant):
            yield field_node.target.id, str(next_node.value.value)


def _param(cls: type[Arguments], name: str, default: Any) -> Param:
    owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    kind = owner.__annotations__[name]
    return Param(name, kind, default, tuple(_shapes(kind)), owner)


def _shapes(kind: Any, bounds: tuple[Bound, ...] = ()) -> Iterator[Shape]:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *metadata = get_args(kind)
        yield from _shapes(inner, tuple(bound for mark in metadata for bound in _bounds(mark)))
    elif origin in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _shapes(member, bounds)
    elif origin is Literal:
        choices: tuple[Any, ...] = get_args(kind)
        yield Shape(cast("type[Any]", type(choices[0])), choices=choices)
    elif origin is tuple:
        yield Shape(tuple, item=tuple(_shapes(get_args(kind)[0])))
    else:
        yield Shape(cast("type[Any]", kind if origin is None else origin), bounds=bounds)


def _bounds(mark: object) -> Iterator[Bound]:
    if isinstance(mark, Interval):
        for part in mark:
            yield from _bounds(part)
    for cls, sign, attribute in ((Ge, ">=", "ge"), (Gt, ">", "gt"), (Le, "<=", "le"), (Lt, "<", "lt")):
        if isinstance(mark, cls):
            yield sign, getattr(mark, attribute)


def _metadata(kind: Any) -> Iterator[object]:
    if get_origin(kind) is Annotated:
        yield from get_args(kind)[1:]
    for member in get_args(kind):
        yield from _metadata(member)
