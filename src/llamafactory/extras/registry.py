"""Named things that are looked up by the user's word for them, imported only when asked for."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from .errors import UserError


T = TypeVar("T")

MAX_LISTED = 30  # more names than this do not help in an error message


class Registry(Generic[T]):
    """A table name -> value; a row may be a lazy "module:attr" string, resolved on the first get."""

    def __init__(self, kind: str, rows: Mapping[str, T | str] | None = None) -> None:
        self.kind = kind
        self._rows: dict[str, T | str] = dict(rows or {})
        self._is_frozen = False

    def get(self, name: str) -> T:
        """Return the value called name; an unknown name is a UserError with the nearest known ones."""
        if name not in self._rows:
            raise UserError(f"Unknown {self.kind} {name!r}.{did_you_mean(name, self._rows)}{self._listing()}")

        row = self._rows[name]
        if isinstance(row, str):
            self._rows[name] = value = load_attribute(row)
            return value
        return row

    def names(self) -> tuple[str, ...]:
        """Return all names in the order of registration."""
        return tuple(self._rows)

    def register(self, name: str, value: T | str | None = None) -> Callable[[T], T]:
        """Add a row: `register("a", thing)`, or as a decorator `@register("a")`."""

        def add(thing: T) -> T:
            self._add(name, thing)
            return thing

        if value is not None:
            self._add(name, value)
        return add

    def freeze(self) -> None:
        """Refuse further rows from now on."""
        self._is_frozen = True

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def _add(self, name: str, value: T | str) -> None:
        if self._is_frozen:
            raise RuntimeError(f"The {self.kind} registry is frozen; {name!r} comes too late.")
        if name in self._rows:
            raise RuntimeError(f"The {self.kind} registry already has a row {name!r}.")
        self._rows[name] = value

    def _listing(self) -> str:
        return f" Known: {', '.join(sorted(self._rows))}." if len(self._rows) <= MAX_LISTED else ""


def load_attribute(path: str) -> Any:
    """Import "package.module:attribute"."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Return up to n known names that look like name, best first; case does not matter."""
    by_lower = {item.lower(): item for item in known}
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=n, cutoff=0.6)
    return [by_lower[match] for match in matches]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x' or 'y'?", or "" when nothing is near."""
    names = nearest(name, known)
    return f" Did you mean {' or '.join(repr(item) for item in names)}?" if names else ""
