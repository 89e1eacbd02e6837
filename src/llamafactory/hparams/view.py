"""The values of a run as rules and derivations see them, before any argument object exists."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ..extras.env import Env


class UnknowableError(Exception):
    """A rule asked for a key that this command lacks or whose value is already known to be wrong."""


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong: the keys it is about and a sentence that says what to do."""

    keys: tuple[str, ...]
    message: str


class View:
    """Attribute access to all values; asking for an unknowable one ends the rule that asked."""

    def __init__(
        self, command: str, values: Mapping[str, Any], wrong: Iterable[str], env: Env, given: Iterable[str] = ()
    ) -> None:
        self.command = command
        self.env = env
        self.given = frozenset(given)
        """The keys that the user set, as opposed to those that have their default."""
        self._values = values
        self._wrong = frozenset(wrong)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in self._wrong or name not in self._values:
            raise UnknowableError(name)
        return self._values[name]

    def get(self, name: str) -> Any:
        """Return a value, or None where this command has no such key."""
        return None if name in self._wrong else self._values.get(name)

    def pair(self, name: str) -> str:
        """Write `key: value` as it would stand in a YAML file."""
        return f"{name}: {word(getattr(self, name))}"

    def clash(self, name: str, other: str, hint: str = "change one of them") -> Violation:
        """Say that two keys cannot have the values they have."""
        return Violation((name, other), f"{self.pair(name)} cannot go with {self.pair(other)}; {hint}")


def word(value: Any) -> str:
    """Write a value as YAML does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(item) for item in cast("tuple[Any, ...]", value)) or "[]"
    return "null" if value is None else str(value)
