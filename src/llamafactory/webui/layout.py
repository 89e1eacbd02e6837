"""Which keys stand where on the page: `layout/<tab>.toml` joined with the one declaration of every key.

A file holds `groups` (a name, whether it starts `folded`, the `section` that it shares a fold with, and its rows of
element names) and `fields`. A field says only what the declaration cannot:

key             the key it sets, where the element has another name
keys            several keys that one widget sets together (composites.py)
widget          switch, choice, open (a choice that takes other words too), names (several words), slider, product
                (`768*768`), text, secret or mapping; unset: what suits the kind of value
choices         words of a composite, or suggestions
range           least, most and step of a slider
default         what a fresh page shows, where that is not the declared default
always          the key is written even where it has its declared default
zero_is_unset   the slider's 0 stands for null

A group with an `owner` shows, below its rows, every key of that argument class that stands nowhere else, so that a new
key appears on the page by itself; `without` leaves keys out.
"""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hparams.schema import Param, list_params


FOLDER = Path(__file__).with_name("layout")
UNSET = ""  # what a widget holds where a key is null


@dataclass(frozen=True, kw_only=True)
class Field:
    """One widget of the form and the key, or keys, that it sets."""

    tab: str
    name: str
    keys: tuple[str, ...]
    widget: str
    param: Param | None
    """The declaration; None for a composite."""
    choices: tuple[Any, ...] = ()
    range: tuple[float, float, float] | None = None
    default: Any = None
    always: bool = False
    zero_is_unset: bool = False

    @property
    def id(self) -> str:
        return f"{self.tab}.{self.name}"

    @property
    def key(self) -> str:
        return self.keys[0]

    @property
    def declared(self) -> Param:
        """The declaration of a field that is no composite."""
        if self.param is None:
            raise TypeError(f"{self.id} sets several keys")
        return self.param

    @property
    def help(self) -> str:
        """The line of the declaration; empty for a composite, which has one in its locale."""
        return self.param.help if self.param else ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Fields that stand together."""

    name: str
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    section: str = ""
    """A fold that holds several groups, one after the other."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for row in self.rows for name in row)


@functools.cache
def list_groups(tab: str) -> tuple[Group, ...]:
    """Return the groups of a tab in their order."""
    rows = _read(tab)["groups"]
    return tuple(Group(**{**row, "rows": tuple(tuple(names) for names in row["rows"])}) for row in rows)


@functools.cache
def list_fields(tab: str, command: str = "train") -> Mapping[str, Field]:
    """Return the fields of a tab by element name."""
    return {name: _field(tab, name, row, command) for name, row in _read(tab)["fields"].items()}


def fields_of(tabs: Sequence[str]) -> dict[str, Field]:
    """Return the fields of several tabs by element id."""
    return {field.id: field for tab in tabs for field in list_fields(tab).values()}


def folds_of(tabs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the ids of all folds with the ids of the elements in them."""
    found: dict[str, tuple[str, ...]] = {}
    for tab in tabs:
        for group in list_groups(tab):
            if group.folded or group.section:
                fold = f"{tab}.{group.section or group.name}"
                found[fold] = (*found.get(fold, ()), *(f"{tab}.{name}" for name in group.names))
    return found


def find_field(element_id: str) -> Field | None:
    """Return the field of an element; None for an element that is none, or of a tab without a layout."""
    tab, _, name = element_id.partition(".")
    return list_fields(tab).get(name) if (FOLDER / f"{tab}.toml").is_file() else None


@functools.cache
def _read(tab: str) -> dict[str, Any]:
    layout = tomllib.loads((FOLDER / f"{tab}.toml").read_text(encoding="utf-8"))
    for group in layout["groups"]:
        if "owner" in group:
            _add_owned(layout["fields"], group)
    return layout


def _add_owned(fields: dict[str, Any], group: dict[str, Any]) -> None:
    """Complete a group with all keys of an argument class that stand nowhere yet."""
    taken = {row.get("key", name) for name, row in fields.items()}
    owner, without = group.pop("owner"), group.pop("without", ())
    left = [key for key, param in list_params("train").items() if param.owner.__name__ == owner]
    left = [key for key in left if key not in taken and key not in without]
    fields.update({key: {} for key in left})
    group["rows"] = [*group.get("rows", []), *(left[place : place + 3] for place in range(0, len(left), 3))]


def _field(tab: str, name: str, row: Mapping[str, Any], command: str) -> Field:
    keys = tuple(row.get("keys", [row.get("key", name)]))
    param = None if "keys" in row else list_params(command)[keys[0]]
    choices = tuple(row.get("choices", ()))
    limits = row.get("range")
    widget = row.get("widget") or _usual_widget(list_params(command)[keys[0]], limits)
    field = Field(
        tab=tab,
        name=name,
        keys=keys,
        widget=widget,
        param=param,
        choices=choices or _choices(param),
        range=None if limits is None else (limits[0], limits[1], limits[2]),
        always=row.get("always", False),
        zero_is_unset=row.get("zero_is_unset", False),
        default=row.get("default"),
    )
    return field


def _usual_widget(param: Param, limits: Any) -> str:
    if param.is_secret:
        return "secret"
    if limits is not None:
        return "slider"
    if param.choices and not param.has(tuple):
        return "open" if param.is_open else "choice"
    if param.has(bool):
        return "choice" if param.is_optional or len(param.shapes) > 1 else "switch"
    if param.has(dict):
        return "mapping"
    return "names_text" if param.has(tuple) else "text"


def _choices(param: Param | None) -> tuple[Any, ...]:
    if param is None:
        return ()
    words = param.choices or ((True, False) if param.has(bool) and param.is_optional else ())
    return (UNSET, *words) if words and param.is_optional else words
